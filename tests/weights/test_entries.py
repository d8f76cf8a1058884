"""Whatever a trainer puts around the network and before its names, the same numbers come out."""

from collections import OrderedDict, defaultdict, namedtuple
from pathlib import Path

import numpy as np
import pytest
from pickles import REGISTRY, Call, Typed, assert_identical, module, refusal, torch_save

from tinygmf import load_model
from tinygmf.commands.main import main
from tinygmf.weights.checkpoint import (
    CheckpointError,
    load_weights,
    read_tensors,
    write_tensors,
)

DATA = Path(__file__).parent.parent / "data"
NANO = read_tensors(DATA / "nano.pth")
ZERO = {key: np.zeros_like(array) for key, array in NANO.items()}  # another of the same shape
HEADLESS = {key: array for key, array in NANO.items() if not key.startswith("head.")}
STEPS = np.array(3)

Pair = namedtuple("Pair", "step model")


def under(prefix: str, tensors=NANO):
    return OrderedDict((prefix + key, array) for key, array in tensors.items())


def mmpretrain(tensors=NANO, prefix=""):
    """Its classifiers keep the head beside the backbone."""
    return {
        prefix + (key.replace("head.", "head.fc.") if key[:5] == "head." else f"backbone.{key}"): a
        for key, a in tensors.items()
    }


def inside(wrapper: str):
    """A wrapper around each block: torch.compile, FSDP or checkpointing applied to parts."""
    return {key.replace("gma_stage.0.", f"gma_stage.0.{wrapper}."): a for key, a in NANO.items()}


def loaded(path: Path) -> dict[str, np.ndarray]:
    return dict(load_weights(path).arrays)


def assert_network(path: Path, expected=NANO) -> None:
    found = loaded(path)
    assert_identical({key: found[key] for key in expected}, dict(expected))
    assert set(found) == set(expected)


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder."),
        *("module._orig_mod.", "_orig_mod.module.", "module.module.", "model.backbone.", "1."),
        *("net.module._orig_mod.encoder.", "student.backbone.", "a.word.never.heard.of."),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_any_prefix_is_taken_off(tmp_path, prefix, suffix):
    write_tensors(under(prefix), tmp_path / f"a{suffix}")
    assert_network(tmp_path / f"a{suffix}")


@pytest.mark.parametrize(
    "wrapper", ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]
)
def test_wrappers_inside_the_network_are_taken_off(tmp_path, wrapper):
    write_tensors(inside(wrapper), tmp_path / "a.pth")
    assert_network(tmp_path / "a.pth")


NAMES = [
    *("state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights"),
    *("params", "state_dict_ema", "model_ema", "ema", "ema_state_dict", "teacher", "student"),
    *("module", "generator", "anything else"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_is_found_under_any_name(tmp_path, name):
    assert_network(torch_save({"epoch": 1, name: OrderedDict(NANO)}, tmp_path / "a.pth"))


class Attributes:
    """An object of some trainer's class, under the name `trainer.State`."""


REGISTRY.add("trainer.State", Attributes)
REGISTRY.add("trainer.Pair", Pair)


def attributes(**values):
    result = Attributes()
    vars(result).update(values)
    return result


def cyclic():
    content: dict = {"model": NANO}
    content["self"] = content
    return content


def held():
    """A trainer that holds itself and, deep inside, the network."""
    trainer = attributes(step=3)
    trainer.me, trainer.loop = trainer, [attributes(best=({"state_dict": NANO},))]
    return trainer


AROUND = {
    "nested": lambda: {"model": {"state_dict": NANO}},
    "deep": lambda: {"a": {"b": {"c": [{"d": {"state_dict": under("module.")}}]}}},
    "a list": lambda: [NANO],
    "a tuple": lambda: (1, {"model": NANO}),
    "a number as key": lambda: {0: NANO},
    "defaultdict": lambda: defaultdict(int, NANO),
    "namedtuple": lambda: Pair(1, NANO),
    "an object": lambda: attributes(model=NANO),
    "a trainer": held,
    "a cycle": cyclic,
    "the same twice": lambda: {"model": (state := OrderedDict(NANO)), "best": state},
    "the same storages twice": lambda: {"model": NANO, "best": dict(NANO)},
    "Lightning": lambda: {
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {**under("model."), "criterion.weight": np.ones(10, np.float32)},
        "optimizer_states": [{"state": {0: {"exp_avg": np.ones(3, np.float32)}}}],
        "hyper_parameters": {"lr": 1e-3},
    },
    "timm": lambda: {"arch": "x", "state_dict": NANO, "state_dict_ema": NANO, "metric": 81.2},
    "mmpretrain": lambda: {"meta": {}, "state_dict": mmpretrain()},
    "mmpretrain, parallel": lambda: {"state_dict": mmpretrain(prefix="module.")},
    "an encoder and a classifier": lambda: {
        (key.replace("head.", "classifier.") if key[:5] == "head." else f"encoder.{key}"): array
        for key, array in NANO.items()
    },
    "DeepSpeed": lambda: {"module": NANO, "param_shapes": [{k: a.shape for k, a in NANO.items()}]},
    "averaged by PyTorch": lambda: {"n_averaged": STEPS, **under("module.")},
    "counted by thop": lambda: {
        **NANO,
        "total_ops": np.zeros(1),
        "conv_stem.proj1.total_params": np.zeros(1),
    },
    "sizes beside it": lambda: {**NANO, "height": 32, "width": 32, "name": "x", "z": None},
    "gradients beside it": lambda: {
        "model": NANO,
        "gradients": {k: a + 1 for k, a in NANO.items() if "running" not in k},
    },
    "a named optimizer": lambda: {
        "model": NANO,
        "optimizer": {"state": {k: {"exp_avg": a + 1} for k, a in NANO.items()}},
    },
    "a module pickled whole": lambda: module(NANO),
    "a parallel module pickled whole": lambda: module(under("module.")),
    "a module in a dictionary": lambda: {"ema": None, "model": module(NANO)},
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("protocol", [2, 5])
def test_the_network_is_found_in(tmp_path, around, protocol):
    assert_network(torch_save(AROUND[around](), tmp_path / "a.pth", protocol))


AVERAGES = {
    "model_ema": lambda: {"model": ZERO, "model_ema": NANO},
    "state_dict_ema": lambda: {"state_dict_ema": NANO, "state_dict": ZERO},
    "ema.shadow": lambda: {"model": ZERO, "ema": {"decay": 0.9, "shadow": NANO}},
    "teacher.backbone": lambda: {
        "student": under("module.backbone.", ZERO) | {"head.mlp.weight": np.ones((3, 3))},
        "teacher": under("backbone."),
    },
    "swa_model": lambda: {"swa_model": {"n_averaged": STEPS, **under("module.")}, "model": ZERO},
    "state_dict.ema_model": lambda: {
        "state_dict": {**under("model.", ZERO), **under("ema_model.module.")}
    },
    "EMA.ema": lambda: {"model": module(ZERO), "EMA": attributes(ema=module(NANO))},
    "state_dict": lambda: {  # MMEngine swaps them when it saves
        "message_hub": {},
        "state_dict": NANO,
        "ema_state_dict": {"steps": STEPS, **under("module.", ZERO)},
    },
    "state_dict.x": lambda: {  # and so does Lightning
        "state_dict": under("x."),
        "current_model_state": under("x.", ZERO),
    },
}


@pytest.mark.parametrize("name", AVERAGES)
def test_of_a_network_and_its_average_the_average_is_taken_and_told(tmp_path, name, caplog):
    path = torch_save(AVERAGES[name](), tmp_path / "a.pth")
    assert_network(path)
    assert f"chose '{name}'" in caplog.text and "--entry names another" in caplog.text


@pytest.mark.parametrize(
    ("entry", "expected"),
    [("model", ZERO), ("model_ema", NANO), ("run.model", ZERO), ("run.model_ema", NANO)],
)
def test_entry_chooses(tmp_path, entry, expected):
    path = torch_save({"run": {"model": ZERO, "model_ema": NANO}}, tmp_path / "a.pth")
    assert_identical(dict(load_weights(path, entry).arrays), dict(expected))
    weight = load_model(path, entry=entry).head.weight.numpy()
    assert (weight == expected["head.weight"]).all()


def test_an_entry_that_is_not_there_is_told_with_those_that_are(tmp_path):
    path = torch_save({"model": ZERO, "model_ema": NANO}, tmp_path / "a.pth")
    message = refusal(path, lambda p: load_weights(p, "teacher"))
    assert "'teacher'" in message and "'model', 'model_ema'" in message


def test_the_command_line_chooses_too(tmp_path):
    path = torch_save({"model": ZERO, "model_ema": NANO}, tmp_path / "a.pth")
    for options, expected in (([], NANO), (["--entry", "model"], ZERO)):
        out = tmp_path / "out.safetensors"
        assert main(["convert", str(path), str(out), *options]) == 0
        assert_identical(read_tensors(out), dict(expected))


def test_two_networks_without_a_reason_to_choose_are_named(tmp_path):
    path = torch_save({"best": NANO, "last": ZERO}, tmp_path / "a.pth")
    message = refusal(path, load_weights)
    assert "found 2" in message and "'best', 'last'" in message and "--entry" in message


def test_a_teacher_of_another_shape_is_no_average(tmp_path):
    other = {k: np.zeros([2 * n for n in a.shape], a.dtype) for k, a in NANO.items()}
    path = torch_save({"student": NANO, "teacher": other}, tmp_path / "a.pth")
    assert "'student', 'teacher'" in refusal(path, load_weights)
    assert_identical(dict(load_weights(path, "student").arrays), NANO)


def test_what_is_skipped_is_counted_and_named(tmp_path, caplog):
    sizes = {f"size{i}": i for i in range(5)}
    assert_network(torch_save({**NANO, **sizes}, tmp_path / "a.pth"))
    assert "skipped" in caplog.text and "5 names: size0, size1, size2, …" in caplog.text


def test_real_tensors_beside_the_network_are_an_error_that_names_them(tmp_path):
    extra = {"adapter.weight": np.ones((3, 3), np.float32)}
    path = torch_save({**NANO, **extra}, tmp_path / "a.pth")
    assert "1 unexpected: adapter.weight" in refusal(path, load_weights)
    mean = {"normalize.mean": np.ones(3, np.float32)}  # it may change what the network sees
    path = torch_save({**under("model."), **mean}, tmp_path / "a.pth")
    assert "normalize.mean" in refusal(path, load_weights)
    assert_identical(dict(load_weights(path, "model").arrays), NANO)


def test_a_number_inside_a_block_is_an_error(tmp_path):
    key = "groupmixformer_backbone.0.gma_stage.0.att.temperature"
    path = torch_save({**NANO, key: np.ones(1, np.float32)}, tmp_path / "a.pth")
    assert f"1 unexpected: {key}" in refusal(path, load_weights)


@pytest.mark.parametrize(
    ("beside", "prefix"),
    [
        ({"bbox_head.cls.weight": np.ones((3, 3))}, "backbone."),
        ({"neck.lateral.weight": np.ones((3, 3)), "decode_head.x": np.ones(3)}, "backbone."),
        ({"backbone.fpn.w": np.ones((3, 3)), "rpn.w": np.ones(3)}, "backbone.body."),
        ({"decoder.w": np.ones((3, 3))}, "encoder."),
    ],
)
def test_the_backbone_of_a_larger_network_is_found_without_a_head(tmp_path, beside, prefix):
    path = torch_save({"state_dict": {**under(prefix, HEADLESS), **beside}}, tmp_path / "a.pth")
    assert_network(path, HEADLESS)
    assert load_weights(path).config.num_classes == 0


def test_a_headless_network_gives_features_and_takes_a_new_head(tmp_path):
    write_tensors(HEADLESS, tmp_path / "a.pth")
    model = load_model(tmp_path / "a.pth")
    assert model.config.num_classes == 0
    model.reset_classifier(7)
    assert model.head.weight.shape == (7, 40)


def test_a_dense_network_lacks_the_last_norm_which_becomes_neutral(tmp_path, caplog):
    dense = {k: a for k, a in HEADLESS.items() if not k.startswith("norm4.")}
    write_tensors(dense, tmp_path / "a.pth")
    arrays = load_weights(tmp_path / "a.pth").arrays
    assert_identical({key: arrays[key] for key in dense}, dense)
    neutral = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}
    for name, value in neutral.items():
        assert (arrays[f"norm4.{name}"] == value).all()
    assert "norm4" in caplog.text
    whole = {k: a for k, a in NANO.items() if not k.startswith("norm4.")}
    write_tensors(whole, tmp_path / "b.pth")
    assert "missing: norm4.weight" in refusal(tmp_path / "b.pth", load_weights)


def test_a_network_that_is_another_one_is_told_by_its_names(tmp_path):
    path = torch_save({"model": {"layer1.weight": np.ones(3)}}, tmp_path / "a.pth")
    message = refusal(path, load_weights)
    assert "not a GroupMixFormer" in message and "model holds layer1.weight" in message
    path = torch_save({"epoch": 3}, tmp_path / "a.pth")
    assert "no named tensors" in refusal(path, load_weights)


INSIDE = {
    "None": (None, "NoneType"),
    "a list": ([1.0, 2.0], "list"),
    "an object": (Call(Attributes, ()), "trainer.State"),
    "integers": (np.ones((10, 40), np.int8), "integer or quantized: head.weight"),
    "complex numbers": (np.ones((10, 40), np.complex64), "complex64"),
    "float8": (Typed(np.ones(400, np.uint8), "float8_e4m3fn", (10, 40)), "float8_e4m3fn"),
}


@pytest.mark.parametrize("name", INSIDE)
def test_inside_the_network_nothing_but_numbers_is_accepted(tmp_path, name):
    value, told = INSIDE[name]
    path = torch_save({**NANO, "head.weight": value}, tmp_path / "a.pth")
    message = refusal(path, load_weights)
    assert told in message and "head.weight" in message and "damaged" not in message


def test_a_name_with_and_without_a_prefix_is_refused(tmp_path):
    twice = {**NANO, "module.head.bias": NANO["head.bias"]}
    assert "twice" in refusal(torch_save(twice, tmp_path / "a.pth"), load_weights)


def test_more_networks_than_can_be_are_refused(tmp_path):
    many = {f"{i}.conv_stem.x": np.ones(1, np.float32) for i in range(1001)}
    with pytest.raises(CheckpointError, match="more than 1000 networks"):
        load_weights(torch_save(many, tmp_path / "a.pth"))
