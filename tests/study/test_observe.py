"""Explanations: what is shown is what the network computes, and mistakes take one line."""

import argparse
import re
import sys

import numpy as np
import pytest
from parity import DATA, TWO_PICTURES, activations_of
from PIL import Image
from strategies import noise
from tinygrad import Tensor

from tinygmf import create_model, load_model
from tinygmf.commands import explain
from tinygmf.gma import linear_attention
from tinygmf.image import PUBLISHED, resize_and_crop
from tinygmf.study.observe import (
    BRANCHES,
    KERNELS,
    PANELS,
    attention_rows,
    choose_block,
    effective_kernel,
    head_label,
    observe,
    receptive_field,
    response_maps,
)

SIZE, TOKENS = (32, 64), (8, 16)  # of the measured pictures, in stage 1
BLOCK = "groupmixformer_backbone.0.gma_stage.0"
LOGITS = 50 * np.eye(10, dtype=np.float32)[3:4]
PLACES = [(0, 0), (13, 40), (31, 63)]


@pytest.fixture(scope="module")
def measured():
    return activations_of(TWO_PICTURES)[1]


@pytest.fixture(scope="module")
def model():
    return load_model(DATA / "nano.pth")


@pytest.fixture(scope="module")
def seen(model):
    """Two pictures in stage 1, block 1: computed once for all tests."""
    return observe(model, activations_of(TWO_PICTURES)[0], stage=1, block=1)


def convolve(x, kernel):
    """(C, h, w), (O, C, k, k) -> (O, h, w), written out."""
    k = kernel.shape[-1]
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), (1, 2))
    return np.einsum("chwkl,ockl->ohw", windows, kernel)


def test_an_observation_holds_the_measured_activations(seen, measured):
    for i, one in enumerate(seen):
        assert (one.picture_size, one.size, one.stride) == (SIZE, TOKENS, 4)
        for found, name in [
            (one.mixed, "aggregator#0"),
            (one.non_attention, "aggregator#1"),
            (one.ensemble, "proj"),
        ]:
            expected = measured[f"{BLOCK}.att.{name}"]
            expected = expected[:, i] if expected.ndim == 5 else expected[i]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_rows_of_the_attention_map_times_values_are_the_linear_attention(seen):
    q, k, v = seen[0].mixed
    linear = linear_attention(*(Tensor(part[None]) for part in (q, k, v))).numpy()[0]
    rows = seen[0].attention_rows(PLACES)  # (queries, heads, h, w)
    assert rows.shape == (len(PLACES), 8, *TOKENS)
    for query, row in zip(PLACES, rows, strict=True):
        found = np.einsum("hn,hnd->hd", row.reshape(8, -1), v)
        expected = linear[:, seen[0].token_at(query)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_row_of_the_map_sums_to_the_sum_of_its_query(seen):
    one = seen[1]
    rows = one.attention_rows(PLACES)
    q = one.mixed[0][:, [one.token_at(query) for query in PLACES]]  # (heads, queries, head_dim)
    np.testing.assert_allclose(rows.sum((2, 3)), q.sum(2).T, rtol=1e-4, atol=1e-5)


def test_tokens_are_counted_row_by_row_over_the_whole_picture(seen):
    assert [seen[0].token_at(place) for place in PLACES] == [0, 3 * 16 + 10, 8 * 16 - 1]


def test_responses_are_the_strength_of_each_branch(seen, measured):
    maps = seen[0].responses()
    assert list(maps) == list(PANELS)
    for i in range(4):
        branch = measured[f"{BLOCK}.att.aggregator.act{i}"][0::2]  # Q, K, V of the first picture
        expected = np.sqrt((branch**2).mean((0, 1)))
        np.testing.assert_allclose(maps[BRANCHES[i]], expected, rtol=1e-3, atol=1e-5)
    ensemble = np.sqrt((measured[f"{BLOCK}.att.proj"][0] ** 2).mean(1)).reshape(TOKENS)
    np.testing.assert_allclose(maps["ensemble layer"], ensemble, rtol=1e-3)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_effective_kernel_is_the_aggregator(model, measured, seen, kernel):
    i = KERNELS.index(kernel) + 1
    norm = getattr(model.groupmixformer_backbone[0].gma_stage[0].att.aggregator, f"norm{i}")
    weight, bias, mean, var = (
        t.numpy() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    shift = (bias - mean * weight / np.sqrt(var + 1e-5))[:, None, None]
    query = np.split(seen[0].qkv[0], 5, axis=1)[i].T.reshape(-1, *TOKENS)  # (D/5, h, w)
    found = convolve(query, effective_kernel(model, 1, 1, kernel)) + shift
    expected = measured[f"{BLOCK}.att.aggregator.norm{i}"][0]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_kernel_of_the_queries_goes_back_to_the_normalized_tokens(model, measured):
    tokens = measured[f"{BLOCK}.norm1"][0].T.reshape(-1, *TOKENS)  # (D, h, w)
    weight = model.groupmixformer_backbone[0].gma_stage[0].att.qkv.weight.numpy()
    segment = np.einsum("od,dhw->ohw", weight[4:8], tokens)  # of Q; D = 20, segments of 4
    np.testing.assert_allclose(
        convolve(tokens, effective_kernel(model, 1, 1, 3, of="q")),
        convolve(segment, effective_kernel(model, 1, 1, 3)),
        rtol=1e-3,
        atol=1e-4,
    )


def test_before_and_after_are_one_branch(seen):
    before, after = seen[0].before_and_after(5)
    assert before.shape == TOKENS
    assert (after == seen[0].responses()["groups of 5x5"]).all()


def test_the_receptive_field_of_a_group_grows_with_its_kernel_and_stage(model):
    fields = [receptive_field(model, 1, 1, kernel) for kernel in KERNELS]
    assert fields == [31, 39, 47]  # 7 of the stem, 15 with the embedding, 23 with cpe
    assert receptive_field(model, 2, 1, 3) == 31 - 2 * 4 + 2 * 4 + 2 * 8 + 2 * 8


def test_the_block_is_chosen_so_that_there_is_something_to_see():
    miny, nano = create_model("groupmixformer_miny").config, load_model(DATA / "nano.pth").config
    assert choose_block(miny, (224, 224), None, None) == (3, 5)
    assert choose_block(nano, (32, 32), None, None) == (1, 1)


def test_heads_are_labeled_by_their_branch():
    assert head_label(0) == "head 1: tokens to tokens"
    assert head_label(7) == "head 8: groups of 7x7 to 7x7"


def one_line(error) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


@pytest.mark.parametrize(("stage", "block"), [(0, 1), (5, 1), (2, 3), (1, 0), (-1, None)])
def test_a_stage_or_block_that_is_not_there_is_a_one_line_error(model, stage, block):
    picture = np.zeros((3, 32, 32), np.float32)
    with pytest.raises(ValueError, match="expected 1 to") as error:
        response_maps(model, picture, stage, block)
    one_line(error)
    with pytest.raises(ValueError, match="expected 1 to"):
        attention_rows(model, picture, stage, block, [(0, 0)])


@pytest.mark.parametrize("query", [(-1, 0), (0, -1), (32, 0), (0, 64)])
def test_a_query_outside_the_picture_is_a_one_line_error(seen, query):
    with pytest.raises(ValueError, match="query: expected y from 0 to 31") as error:
        seen[0].attention_rows([query])
    one_line(error)


def test_other_bad_arguments_are_one_line_errors(model, seen):
    for call in (
        lambda: seen[0].before_and_after(4),
        lambda: effective_kernel(model, 1, 1, 9),
        lambda: effective_kernel(model, 1, 1, 3, of="w"),
        lambda: observe(model, np.zeros((1, 3, 16, 16)), 1, 1),
    ):
        with pytest.raises(ValueError) as error:
            call()
        one_line(error)


def command(*arguments):
    parser = argparse.ArgumentParser()
    explain.add_arguments(parser)
    return explain.run(parser.parse_args(list(map(str, arguments))))


@pytest.fixture
def pictures(tmp_path):
    names = [tmp_path / "a.png", tmp_path / "b.png"]
    for i, name in enumerate(names):
        Image.fromarray(noise(i, 32, 32)).save(name)
    return names


@pytest.fixture
def without_network(monkeypatch, seen):
    """The command on ready observations: what is tested is the command."""
    monkeypatch.setattr(explain, "look", lambda *_: seen)
    monkeypatch.setattr(explain, "captions", lambda _, __, looked, *___: ["a.png"] * len(looked))


@pytest.mark.parametrize("options", [[], ["--query", "3,5"], ["--kernel", "5"]])
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_command_draws(pictures, tmp_path, without_network, options, suffix, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / f"figure{suffix}"
    weights = DATA / "nano.pth"
    assert command(*pictures, "--weights", weights, "--size", 32, "--out", out, *options) == 0
    assert out.stat().st_size > 10_000
    assert "stage 1, block 1" in capsys.readouterr().out


def test_the_command_saves_arrays_without_matplotlib(pictures, tmp_path, seen, monkeypatch):
    monkeypatch.setattr(explain, "look", lambda *_: seen)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out, weights = tmp_path / "maps.npz", DATA / "nano.pth"
    command(*pictures, "--weights", weights, "--size", 32, "--query", "3,5", "--out", out)
    with np.load(out) as arrays:
        assert arrays["attention"].shape == (2, 8, *TOKENS)
        assert (arrays["non-attention"][1] == seen[1].responses()["non-attention"]).all()
        assert list(arrays["images"]) == list(map(str, pictures))
    with pytest.raises(ValueError, match=r"pip install 'tinygmf\[plots\]'") as error:
        command(*pictures, "--weights", weights, "--out", tmp_path / "figure.png")
    one_line(error)


@pytest.mark.parametrize(
    "options",
    [["--query", "32,0"], ["--stage", "9"], ["--block", "2"], ["--out", "figure.gif"]],
)
def test_the_command_refuses_before_it_computes(pictures, options, monkeypatch):
    monkeypatch.setattr(explain, "look", None)  # calling it would be a TypeError
    with pytest.raises(ValueError) as error:
        command(pictures[0], "--weights", DATA / "nano.pth", "--size", 32, "--stage", 1, *options)
    one_line(error)


@pytest.mark.parametrize("shape", [(400, 300), (300, 400), (512, 512), (65, 900)])
def test_a_query_in_the_users_pixels_is_the_same_place_in_what_the_network_sees(shape):
    """A bright spot in the picture is where the query for it lies after resizing and cropping."""
    (height, width), side = shape, min(shape)
    y, x = height // 2 + side // 5, width // 2 - side // 4
    pixels = np.zeros((height, width, 3), np.uint8)
    spot = max(side // 30, 2)
    pixels[y - spot : y + spot + 1, x - spot : x + spot + 1] = 255
    crop = np.asarray(resize_and_crop(Image.fromarray(pixels), 64))[..., 0].astype(float)
    centre = [np.average(np.arange(64), weights=crop.sum(axis)) for axis in (1, 0)]
    found = explain.place_in_crop("x.png", (y, x), (width, height), 64, PUBLISHED)
    np.testing.assert_allclose(found, centre, atol=1)


@pytest.mark.parametrize("query", [(0, 200), (299, 200), (150, 20), (150, 380), (-1, 5), (900, 5)])
def test_a_query_outside_what_the_network_sees_names_the_pixels_that_it_sees(query):
    with pytest.raises(ValueError) as error:
        explain.place_in_crop("x.png", query, (400, 300), 64, PUBLISHED)
    numbers = [int(n) for n in re.findall(r"from (\d+) to (\d+)", one_line(error)) for n in n]
    top, bottom, left, right = numbers
    for inside in ((top, left), (bottom, right)):
        place = explain.place_in_crop("x.png", inside, (400, 300), 64, PUBLISHED)
        assert all(0 <= at < 64 for at in place)


def test_figures_tell_file_answer_and_units(pictures, model, seen, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("tinygmf.engine.predictor.Predictor", lambda *_, **__: lambda _: LOGITS)
    crops = [Image.open(name).convert("RGB") for name in pictures]
    looked = [explain.Looked(str(p), c, (3, 5)) for p, c in zip(pictures, crops, strict=True)]
    titles = explain.captions(model, str(DATA / "nano.pth"), looked, "CPU", (100, 200))
    assert titles[0] == "a.png\n3 100%\nquery at y=100, x=200"
    for options in ({}, {"kernel": 5}):
        plain = [one._replace(query=None) for one in looked]
        figure = explain.draw(plain, seen, model, options.get("kernel"), titles)
        assert any(titles[1] in axis.get_title() for axis in figure.axes)
        assert "RMS" in figure.get_supxlabel()
    figure = explain.draw(looked, seen, model, None, titles)
    assert any(axis.get_title() == titles[0] for axis in figure.axes)
    assert "attention weight: the token's part" in figure.get_supxlabel()


def test_the_architecture_is_drawn_from_the_configuration():
    pytest.importorskip("matplotlib")
    from tinygmf.study.figures import draw_architecture

    figure = draw_architecture(create_model("groupmixformer_miny").config)
    text = " ".join(part.get_text() for part in figure.axes[0].texts)
    assert "14x14 tokens" in text and "12 blocks" in text and "1000 classes" in text
