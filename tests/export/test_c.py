"""The C program gives the published network's numbers, compiles without a warning, reads only what
it wrote, and its memory plan never lets two live values overlap."""

import ctypes
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity import DATA, deterministic_state_dict, load_npz, nano_entries, parity_input
from PIL import Image

from reference import Network
from tinygmf.config import Settings
from tinygmf.export.c import c_string, names, run_c, write_c
from tinygmf.export.program import ALIGNMENT, Call, Program, capture, plan
from tinygmf.image import preprocess
from tinygmf.weights.checkpoint import load_weights

SIZE = 64
ODD = 37
NAMES = [
    "plain",
    '"quoted"',
    "back\\slash",
    "??/",
    "Ünïcödé",
    "三",
    "tab\t",
    "7",
    "%s",
    "new\nline",
]
BLOCK = "groupmixformer_backbone.1.gma_stage.1"
MAPS = ["conv_stem.act2", f"{BLOCK}.att.qkv", f"{BLOCK}.cpe", BLOCK]
ZIG = [sys.executable, "-m", "ziglang", "cc"]


@pytest.fixture(scope="module")
def program() -> Program:
    weights = load_weights(DATA / "nano.pth")
    return capture(weights._replace(settings=Settings(classes=tuple(NAMES))), SIZE, maps=MAPS)


@pytest.fixture(scope="module")
def folder(program, tmp_path_factory) -> Path:
    """An export with a picture of noise as its example."""
    folder = tmp_path_factory.mktemp("c")
    write_c(program, folder, noise(SIZE))
    return folder


def noise(size: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def build(folder: Path, out: Path, compiler: list[str], *options: str) -> None:
    """Compile main.c and network.c; any warning is an error."""
    strict = ["-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror", *options]
    sources = [str(folder / "main.c"), str(folder / "network.c")]
    done = subprocess.run(
        [*compiler, *strict, "-o", str(out), *sources, "-lm"], capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr


def start(command: Path | list[str], *words: str, folder: Path) -> subprocess.CompletedProcess:
    words = (*map(str, command if isinstance(command, list) else [command]), *words)
    return subprocess.run(words, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def classify(folder, tmp_path_factory) -> Path:
    """The program with gcc's sanitizers, which end it at the first fault."""
    out = tmp_path_factory.mktemp("program") / "classify"
    build(folder, out, ["gcc"], "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    return out


def test_logits_and_maps_are_those_that_pytorch_measured(program, folder):
    numbers = load_npz("nano_activations_1x3x64x64")
    logits, maps = run_c(folder, program, parity_input(int(numbers["seed"]), (1, 3, SIZE, SIZE)))
    assert np.abs(logits - numbers["logits"]).max() < 1e-5
    assert list(maps) == MAPS
    for name, found in maps.items():
        expected = numbers[name]
        if expected.ndim == 4:  # channels last
            expected = expected.reshape(*expected.shape[:2], -1).transpose(0, 2, 1)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_batch_of_an_odd_size_gives_the_references_logits(tmp_path):
    program = capture(load_weights(DATA / "nano.pth"), ODD, batch=2)
    write_c(program, tmp_path, noise(ODD))
    weights = deterministic_state_dict(nano_entries())
    reference = Network({name: tensor.tolist() for name, tensor in weights.items()})
    x = parity_input(1, (2, 3, ODD, ODD))
    logits, maps = run_c(tmp_path, program, x)
    assert np.abs(logits - [reference(picture.tolist()) for picture in x]).max() < 1e-5
    assert maps == {}


def test_the_program_names_the_likeliest_classes_without_a_fault(program, folder, classify):
    done = start(classify, "example.ppm", folder=folder)
    assert done.returncode == 0 and not done.stderr, done.stderr
    logits = run_c(folder, program, preprocess(noise(SIZE), SIZE)[None])[0][0]
    best = [int(i) for i in (-logits).argsort()[:5]]
    rows = [line.split(maxsplit=2) for line in done.stdout.replace("new\nline", "new").splitlines()]
    assert [int(row[1]) for row in rows] == best
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert [float(row[0][:-1]) for row in rows] == pytest.approx(100 * shares[best], abs=0.006)


def test_zigs_clang_has_no_warning(folder, tmp_path):
    build(folder, tmp_path / "classify", ZIG, "-O1")
    assert start(tmp_path / "classify", "example.ppm", folder=folder).returncode == 0


def test_pictures_and_weights_that_are_none_are_refused_in_one_line(folder, classify, tmp_path):
    good = (folder / "weights.bin").read_bytes()
    picture = (folder / "example.ppm").read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for weights in (b"", good[:-1], good + b"\0", bytes(flipped), b"x" * len(good)):
        (tmp_path / "bad.bin").write_bytes(weights)
        done = start(classify, "example.ppm", str(tmp_path / "bad.bin"), folder=folder)
        assert done.returncode == 2 and not done.stdout and len(done.stderr.splitlines()) == 1
        assert "bad.bin: expected this network's weights" in done.stderr
    heads = b"", b"P6", b"P6 64 64 255\n", b"P6 9999999999 64 255\n", b"P6\n# " + b"#" * 500
    sizes = picture[:-1], picture.replace(b"64 64", b"63 65"), b"P5" + picture[2:]
    for ppm in (*heads, *sizes):
        (tmp_path / "bad.ppm").write_bytes(ppm)
        done = start(classify, str(tmp_path / "bad.ppm"), folder=folder)
        assert done.returncode == 2 and not done.stdout and len(done.stderr.splitlines()) == 1
        assert "bad.ppm: expected a PPM" in done.stderr


def test_a_comment_in_the_ppm_is_skipped(folder, classify, tmp_path):
    picture = (folder / "example.ppm").read_bytes()
    (tmp_path / "commented.ppm").write_bytes(picture.replace(b"P6\n", b"P6\n# by hand\n", 1))
    done = start(classify, str(tmp_path / "commented.ppm"), folder=folder)
    assert done.stdout == start(classify, "example.ppm", folder=folder).stdout != ""


def test_make_builds_it_with_the_weights_beside_it_or_inside(folder, tmp_path):
    here = shutil.copytree(folder, tmp_path / "c")
    for target in ("classify", "embedded"):
        command = ["make", "-s", target, "CFLAGS=-O1 -Werror", "CC=gcc"]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    beside = start(here / "classify", "example.ppm", folder=here)
    (here / "weights.bin").unlink()
    inside = start(here / "embedded", "example.ppm", folder=here)
    assert inside.stdout == beside.stdout != ""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("qemu-aarch64"), reason="needs qemu-user")
def test_it_runs_on_a_cortex_a72(folder, classify, tmp_path):
    arm = ["-O2", "-target", "aarch64-linux-musl", "-mcpu=cortex_a72", "-static"]
    build(folder, tmp_path / "arm", ZIG, *arm)
    found = start(["qemu-aarch64", str(tmp_path / "arm")], "example.ppm", folder=folder)
    assert found.stdout == start(classify, "example.ppm", folder=folder).stdout != ""


def test_names_arrive_as_they_were_given(program, folder, tmp_path):
    library = str(tmp_path / "network.so")
    command = ["gcc", "-std=c11", "-shared", "-fPIC", "-o", library, str(folder / "network.c")]
    subprocess.run([*command, "-lm"], check=True)
    names = (ctypes.c_char_p * 10).in_dll(ctypes.CDLL(library), "network_names")
    assert [name.decode() for name in names] == NAMES


def test_a_backbone_has_features_though_its_file_names_the_classes_of_a_dense_network():
    weights = load_weights(DATA / "nano.pth")
    config = replace(weights.config, num_classes=0)
    network = weights._replace(config=config, settings=Settings(classes=("sky", "sea")))
    program = Program(network, SIZE, 1, {}, [], [], {}, {}, 0, [])
    assert names(program) == [str(i) for i in range(40)]


def test_a_map_that_is_none_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match=r"map 'nothing': expected one of conv_stem.act1, "):
        capture(load_weights(DATA / "nano.pth"), 32, maps=["nothing"])


def test_a_kernel_in_pieces_is_called_for_each(program, tmp_path):
    source = """void twice(float* restrict out, const float* in1, const unsigned char piece) {
  for (int i = piece*5; i < piece*5 + 5; i++) {
    out[i] = in1[i] * 2.0f;
  }
}"""
    calls = [Call("twice", ("output", "input"), pieces=2)]
    program = replace(program, kernels={"twice": source}, calls=calls, maps=[])
    write_c(program, tmp_path, noise(SIZE))
    x = parity_input(0, (1, 3, SIZE, SIZE))
    assert np.array_equal(run_c(tmp_path, program, x)[0], 2 * x[:, 0, 0, :10])


@given(st.text(max_size=20))
def test_a_literal_is_plain_ascii_on_one_line(text):
    literal = c_string(text)
    assert literal.isascii() and literal.isprintable() and "??" not in literal
    assert eval(f"b{literal}").decode() == text  # Python reads octal escapes as C does


@st.composite
def schedules(draw):
    """Calls that write each value before they read it, and the values' sizes."""
    sizes = draw(st.lists(st.integers(1, 100), min_size=1, max_size=12))
    names, calls = [f"value{i}" for i in range(len(sizes))], []
    for i, name in enumerate(names):
        read = draw(st.lists(st.sampled_from(["input", *names[:i]]), max_size=3))
        calls.append(Call("kernel", (name, *read)))
    return calls, dict(zip(names, sizes, strict=True)), draw(st.sets(st.sampled_from(names)))


@given(schedules())
def test_values_that_live_together_never_overlap(schedule):
    calls, sizes, held = schedule
    offsets, arena = plan(calls, sizes, held)
    for now in range(len(calls)):
        written = {call.arguments[0] for call in calls[: now + 1]}
        needed = {name for call in calls[now:] for name in call.arguments} | held
        alive = sorted(written & needed, key=offsets.__getitem__)
        ends = [offsets[name] + sizes[name] for name in alive]
        assert all(end <= offsets[after] for end, after in zip(ends, alive[1:], strict=False))
        assert all(end <= arena for end in ends)
    assert all(offset % ALIGNMENT == 0 for offset in offsets.values())


def test_the_arena_is_no_larger_than_what_lives_at_the_busiest_call(program):
    calls, sizes = program.calls, program.sizes
    _, arena = plan(calls, sizes)
    last = {name: i for i, call in enumerate(calls) for name in call.arguments}
    first = {name: i for i, call in reversed([*enumerate(calls)]) for name in call.arguments}
    rounded = {name: -(-size // ALIGNMENT) * ALIGNMENT for name, size in sizes.items()}
    peak = max(
        sum(rounded[name] for name in sizes if first[name] <= i <= last[name])
        for i in range(len(calls))
    )
    assert peak <= arena <= 1.02 * peak
