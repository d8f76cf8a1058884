"""`python -m reference WEIGHTS IMAGE`: an answer, or one line on what is wrong."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from parity import deterministic_state_dict, nano_entries, safetensors_bytes

from reference import load_network
from reference.picture import DEVIATION, MEAN, normalize, read_ppm

ROOT = Path(__file__).parents[2]
PIXELS = np.random.RandomState(0).randint(0, 256, (33, 32, 3), dtype=np.uint8)  # [H][W][3]
BINARY = b"P6 32 33 255\n" + PIXELS.tobytes()


def run(*arguments: object) -> subprocess.CompletedProcess:
    """The command in a fresh Python without site-packages: the standard library must do."""
    command = [sys.executable, "-S", "-m", "reference", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    path.write_bytes(safetensors_bytes(deterministic_state_dict(nano_entries())))
    return path


def test_the_five_likeliest_classes_are_printed_likeliest_first(weights, tmp_path):
    image = tmp_path / "image.ppm"
    image.write_bytes(BINARY)
    result = run(weights, image)
    assert (result.returncode, result.stderr) == (0, "")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["class", "probability"]

    picture = (PIXELS / 255 - MEAN) / DEVIATION
    logits = np.array(load_network(weights)(picture.transpose(2, 0, 1).tolist()))
    probabilities = np.exp(logits) / np.exp(logits).sum()
    best = np.argsort(-probabilities)[:5]
    assert [int(index) for index, _ in rows[1:]] == best.tolist()
    np.testing.assert_allclose([float(p) for _, p in rows[1:]], probabilities[best], atol=1e-4)


def test_binary_and_text_pictures_are_the_same_picture(tmp_path):
    text = "P3\n# a comment\n32 # the width\n33\n255\n" + " ".join(map(str, PIXELS.ravel())) + "\n"
    (tmp_path / "text.ppm").write_text(text)
    (tmp_path / "binary.ppm").write_bytes(b"P6\n#one\n32\n33\n#two\n255\n" + PIXELS.tobytes())
    picture = read_ppm(tmp_path / "text.ppm")
    assert picture == read_ppm(tmp_path / "binary.ppm")
    np.testing.assert_allclose(picture, PIXELS.transpose(2, 0, 1) / 255)


def test_a_picture_s_largest_value_is_white(tmp_path):
    (tmp_path / "image.ppm").write_bytes(b"P6 2 1 15\n" + bytes([0, 3, 15, 15, 15, 15]))
    assert read_ppm(tmp_path / "image.ppm") == [[[0, 1]], [[0.2, 1]], [[1, 1]]]


def test_an_image_of_imagenet_s_mean_colour_is_normalized_to_0():
    assert normalize([[[mean]] for mean in MEAN]) == [[[0]], [[0]], [[0]]]


BAD_PICTURES = {
    "empty": b"",
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(50),
    "grey": b"P5 32 32 255\n" + bytes(32 * 32),
    "16 bits": b"P6 32 32 65535\n" + bytes(32 * 32 * 6),
    "no width": b"P6 0 32 255\n",
    "cut short": BINARY[:-1],
    "too long": BINARY + b"0",
    "header only": b"P6 32 32 255",
    "brighter than white": b"P6 32 33 100\n" + PIXELS.tobytes(),
    "letters": b"P3 32 32 255\n" + b"x " * 3072,
    "negative": b"P3 32 32 255\n" + b"-1 " * 3072,
}


@pytest.mark.parametrize("content", BAD_PICTURES.values(), ids=BAD_PICTURES.keys())
def test_a_bad_picture_is_refused_in_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "bad.ppm"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"expected .*found") as error:
        read_ppm(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bad.ppm", b"GIF89a\n"),
        ("small.ppm", b"P6 31 32 255\n" + bytes(31 * 32 * 3)),
        ("bad.safetensors", b"P6 32 32 255\n"),
        ("missing.ppm", None),
        ("missing.safetensors", None),
    ],
)
def test_the_command_ends_a_mistake_with_one_line_and_status_2(weights, tmp_path, name, content):
    (tmp_path / "good.ppm").write_bytes(BINARY)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    files = [weights, tmp_path / "good.ppm"]
    files[name.endswith(".ppm")] = tmp_path / name
    result = run(*files)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert all(word in result.stderr for word in (name, "expected", "found", ";"))


def test_the_command_without_files_says_how_to_use_it():
    result = run()
    assert result.returncode == 2
    assert "usage: python -m reference" in result.stderr
