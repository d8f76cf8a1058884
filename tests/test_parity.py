"""Proof that this is the published network: its outputs are the measured ones."""

import pytest
from parity import (
    DATA,
    MEASURED,
    ONE_PICTURE,
    assert_measured,
    deterministic_state_dict,
    load_npz,
    manifest,
    parity_input,
    relative_difference,
)
from tinygrad import Tensor

from tinygmf import GroupMixFormer, load_model
from tinygmf.config import VARIANTS
from tinygmf.weights.checkpoint import load_state_dict


# one square picture goes through the same code as two that are not
@pytest.mark.parametrize(
    "activations",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == ONE_PICTURE)) for name in MEASURED],
    indirect=True,
)
def test_every_module_of_the_nano_network_gives_the_measured_output(activations):
    x, measured = activations
    trace = load_model(DATA / "nano.pth").trace(Tensor(x))
    assert trace.keys() == measured.keys()
    Tensor.realize(*trace.values())
    for key, expected in measured.items():
        assert trace[key].shape == expected.shape, key
        assert relative_difference(trace[key].numpy(), expected) < 2e-5, key


def test_the_network_inside_a_training_checkpoint_is_the_one_after_its_step():
    model = load_model(DATA / "nano_training_checkpoint.pth")
    after = load_npz("nano_train_after_one_step")
    key = "groupmixformer_backbone.1.gma_stage.1.att.qkv.weight"
    qkv = model.groupmixformer_backbone[1].gma_stage[1].att.qkv.weight.numpy()
    assert (qkv == after[key]).all()
    assert model.norm4.num_batches_tracked.item() == 101


@pytest.mark.slow  # of the first two, engine/test_folded.py checks the same in the engine's form
@pytest.mark.parametrize("name", ["miny", "tiny", "small", "base", "large"])
def test_the_published_variants_give_the_measured_logits_and_maps(name):
    measured = load_npz(f"{name}_224")
    model = GroupMixFormer(VARIANTS[f"groupmixformer_{name}"], seed=None)
    load_state_dict(model, deterministic_state_dict(manifest()[name]["state_dict"]))
    x = Tensor(parity_input(int(measured["seed"]), (1, 3, 224, 224)))
    maps = model.forward_features(x)
    logits = model.forward_head(maps[-1])
    Tensor.realize(logits, *maps)
    assert_measured(measured, logits.numpy(), [found.numpy() for found in maps])
