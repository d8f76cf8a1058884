"""The published weight files, where the user has them: TINYGMF_WEIGHTS=a.pth:b.pth pytest …

They cannot be redistributed; the README says how to get them from the authors' page.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from parity import manifest
from strategies import normal
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

import reference
from tinygmf import load_model
from tinygmf.config import variant_name

FILES = [Path(p) for p in os.environ.get("TINYGMF_WEIGHTS", "").split(os.pathsep) if p]

pytestmark = pytest.mark.skipif(
    not FILES,
    reason="set TINYGMF_WEIGHTS to the published files (README, 'Published weights') to run this",
)


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.name)
def weights(request):
    return request.param


def test_the_file_holds_a_published_variant_with_all_its_parameters(weights):
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    print(f"\n{weights.name}: SHA-256 {digest}")
    model = load_model(weights)
    name = variant_name(model.config)
    assert name is not None
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    count = sum(
        int(np.prod(t.shape))
        for key, t in get_state_dict(model).items()
        if not key.endswith(buffers)
    )
    assert count == manifest()[name.removeprefix("groupmixformer_")]["num_parameters"]


def test_port_and_reference_give_the_same_logits_with_the_real_weights(weights):
    model, image = load_model(weights), normal(0, 3, 64, 64)
    state = {key: t.numpy().tolist() for key, t in get_state_dict(model).items()}
    expected = np.array(reference.Network(state)(image.tolist()))
    found = model(Tensor(image[None])).numpy()[0]
    assert abs(found - expected).max() < 1e-4 * abs(expected).max()
