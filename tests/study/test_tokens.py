"""Tokens of photographs: what they keep of the picture, and what is refused."""

import numpy as np
import pytest
from PIL import Image
from strategies import noise

from tinygmf.study.tokens import PHOTOGRAPHS, patch_tokens, photograph


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_photograph_comes_in_the_size_asked_for(name):
    pytest.importorskip(PHOTOGRAPHS[name][0])
    assert photograph(name, 48).size == (48, 48)


def test_all_components_of_a_patch_keep_all_of_the_picture():
    """The tokens are a linear image of the patches: least squares brings each pixel back."""
    pixels = noise(0, 40, 48)
    tokens = patch_tokens(Image.fromarray(pixels), 4, 48)  # (10 * 12, 48)
    patch = pixels[8:12, 20:24].reshape(-1)  # row 2, column 5
    patches = pixels.reshape(10, 4, 12, 4, 3).swapaxes(1, 2).reshape(120, 48).astype(float)
    basis = np.c_[tokens, np.ones(120)]
    solution, *_ = np.linalg.lstsq(basis, patches, rcond=None)
    np.testing.assert_allclose((basis @ solution)[2 * 12 + 5], patch, atol=1e-6)
    assert tokens.std() == pytest.approx(1)
    assert np.abs(tokens.mean(0)).max() < 1e-9


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="expected flower"):
        photograph("lena", 32)
    with pytest.raises(ValueError, match="at most 16, found 17"):
        patch_tokens(Image.fromarray(noise(0, 16, 16)), 4, 17)
