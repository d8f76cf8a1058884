"""What the heads cost, against their tensors and products counted by hand."""

import math

import pytest
from dense_case import network
from parity import dense_manifest

from tinygmf import create_model
from tinygmf.commands.main import main
from tinygmf.dense.summary import summarize_heads
from tinygmf.weights.checkpoint import save_model

BEHIND = ("conv_stem", "patch_embed_layers", "groupmixformer_backbone", "running_", "num_batches")


@pytest.mark.parametrize("name", ["upernet", "semantic_fpn", "retinanet", "maskrcnn"])
def test_the_parts_have_all_parameters_behind_the_backbone(name):
    entries = dense_manifest()[name]["state_dict"]
    expected = sum(
        math.prod(shape) for key, shape, _ in entries if not any(word in key for word in BEHIND)
    )
    assert sum(part.parameters for part in summarize_heads(network(name), (64, 64))) == expected


def test_flops_are_the_multiply_adds_of_every_level():
    pyramid, head = summarize_heads(network("retinanet"), (96, 128))
    places = [12 * 16, 6 * 8, 3 * 4, 2 * 2, 1]
    lateral = sum(n * width * 16 for n, width in zip(places, (20, 30, 40), strict=False))
    smooth = sum(places) * 16 * 16 * 9  # three levels of the pyramid, P6 and P7
    assert pyramid.flops == lateral + smooth
    convolutions = 8 * 16 * 16 * 9 + 16 * 9 * (45 + 36)
    assert head.flops == sum(places) * convolutions


def test_torchvision_s_own_heads_have_their_known_numbers_of_parameters():
    parts = {part.name: part for part in summarize_heads(create_model("maskrcnn"), (64, 64))}
    assert parts["proposals"].parameters == 593_935
    assert parts["box head"].parameters == 14_362_055
    assert parts["box head"].boxes == 1000


def test_info_shows_the_heads(capsys):
    assert main(["info", "semantic_fpn", "--size", "64"]) == 0
    assert "decode head" in capsys.readouterr().out


def test_info_takes_the_size_that_the_file_names(tmp_path, capsys):
    path = tmp_path / "fpn.safetensors"
    save_model(network("semantic_fpn", min_size=96), path)
    for options, side in ([], 96 // 4), (["--size", "64"], 64 // 4):
        assert main(["info", str(path), *options]) == 0
        stage = next(row for row in capsys.readouterr().out.splitlines() if "stage 1" in row)
        assert f"{side}x{side}" in stage
