"""What users of PyTorch and of other command lines try first works, or says what does."""

import sys

import numpy as np
import pytest
from PIL import Image

import tinygmf
from tinygmf.commands.examples import EXAMPLES
from tinygmf.commands.main import COMMANDS, build_parser, main
from tinygmf.weights.reading import find_weights, read_checkpoint


@pytest.fixture(scope="module")
def model():
    return tinygmf.create_model("nano", num_classes=4)


def test_public_names_and_parts_of_the_library_are_found_when_they_are_first_used():
    places = [name for names in tinygmf.PLACES.values() for name in names]
    assert sorted(places) == tinygmf.__all__ == [n for n in dir(tinygmf) if n in places]
    assert all(getattr(tinygmf, name).__module__.startswith("tinygmf.") for name in places)
    assert tinygmf.study.__name__ == "tinygmf.study"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tinygmf.nothing


def test_a_short_name_is_the_long_one():
    long, short = (tinygmf.create_model(name) for name in ("groupmixformer_nano", "nano"))
    assert long.config == short.config
    with pytest.raises(ValueError, match="expected one of groupmixformer_nano"):
        tinygmf.create_model("huge")


def test_the_state_dict_has_the_checkpoints_names_and_parameters_are_what_training_changes(model):
    state = model.state_dict()
    assert "groupmixformer_backbone.0.gma_stage.0.att.qkv.weight" in state
    buffers = [key for key in state if key.split(".")[-1] in ("running_mean", "running_var")]
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    assert len(model.parameters()) == len(state) - len(buffers) - len(counters)
    assert model.eval() is model and model.train(False) is model
    with pytest.raises(ValueError, match="TRAINING=1"):
        model.train()


def test_to_moves_every_tensor_and_keeps_its_values(model):
    before = model.head.weight.numpy()
    assert model.to("CPU:1") is model
    assert {tensor.device for tensor in model.state_dict().values()} == {"CPU:1"}
    np.testing.assert_array_equal(model.head.weight.numpy(), before)
    model.to("CPU")


def test_a_printed_model_says_its_name_size_and_stages(model):
    lines = repr(model).splitlines()
    assert lines[0].startswith("groupmixformer_nano: 0.2 M parameters, 4 classes")
    assert lines[1:] == [
        "  stage 1: 1 block of 20 channels, stride 4",
        "  stage 2: 1 block of 40 channels, stride 8",
        "  stage 3: 1 block of 80 channels, stride 16",
        "  stage 4: 1 block of 80 channels, stride 32",
    ]


def test_shipped_weights_have_a_name_that_a_file_of_the_user_goes_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tinygmf.load_model("digits").settings.image_size == 32
    (tmp_path / "digits").write_bytes(find_weights("/digits").name.encode())
    with pytest.raises(ValueError, match="digits"):
        read_checkpoint("digits")


def test_a_predictor_takes_a_file_and_names_the_likeliest():
    digit = Image.open(find_weights("digits").parent / "digits" / "3_0059.png")
    best, second = tinygmf.Predictor("digits").top(digit, 2)
    assert best[0] == "3" and best[1] > 0.5 > second[1] > 0


def test_the_command_alone_lists_the_commands(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)


def test_the_help_of_every_command_ends_with_examples_that_it_takes(capsys):
    assert EXAMPLES.keys() == COMMANDS.keys()
    for name, examples in EXAMPLES.items():
        parser = build_parser([name])
        for words in examples:
            assert parser.parse_args([name, *words.split()]).command == name
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert capsys.readouterr().out.rstrip().endswith(f"tinygmf {name} {examples[-1]}".rstrip())


def test_a_shell_completes_commands_and_options(capsys):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert "--learning-rate" in script and script.rstrip().endswith("-F _shtab_tinygmf tinygmf")


def test_completion_without_shtab_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "zsh"]) == 2
    assert "pip install 'tinygmf[completion]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["train", "digits", "--lr", "1"], "--learning-rate"),
        (["train", "digits", "--epohcs", "1"], "--epochs"),
        (["classify", "x.png", "--weights", "digits", "--topn", "3"], "--topk"),
        (["clasify", "x.png"], "classify"),
        (["train", "digits", "--model", "tinny"], "tiny"),
        (["train", "digits", "--model", "groupmixformer_tinny"], "groupmixformer_tiny"),
        (["train", "digits", "--recipe", "qick"], "quick"),
        (["evaluate", "x", "--weights", "digits", "--task", "segmnt"], "segment"),
    ],
)
def test_an_unknown_word_is_answered_with_the_nearest(words, meant, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["convert", "digit", "x.pth"], "digits"),
        (["info", "tinny"], "tiny"),
        (["info", "scene-segment"], "scenes-segment"),
    ],
)
def test_so_is_the_name_of_a_network(words, meant, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert capsys.readouterr().err.endswith(f"; did you mean {meant}?\n")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["train", ""], "DATA"),
        (["train", "--resume", ""], "--resume"),
        (["train", "digits", "--weights="], "--weights"),
        (["classify", "x.png", ""], "PICTURE"),
        (["evaluate", "", "--weights", "digits"], "FOLDER"),
        (["segment", "--demo", "--out", ""], "--out"),
        (["export", "", "--to", "c", "--out", "x"], "WEIGHTS"),
    ],
)
def test_an_unset_variable_of_the_shell_is_not_the_current_folder(words, name, capsys):
    with pytest.raises(SystemExit):
        main(words)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(f"argument {name}: expected a name, found an empty text: name one")
