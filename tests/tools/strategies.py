"""Hypothesis strategies: what a GroupMixFormer may be built from and fed with."""

import numpy as np
from hypothesis import strategies as st

from tinygmf import GroupMixFormerConfig

dims = st.integers(1, 5).map(lambda tens: 10 * tens)


@st.composite
def configs(draw) -> GroupMixFormerConfig:
    """Small legal configurations, MLP ratios that are no whole numbers included."""

    def four(values):
        return draw(st.tuples(*[values] * 4))

    return GroupMixFormerConfig(
        embedding_dims=four(dims),
        serial_depths=four(st.integers(1, 2)),
        mlp_ratios=four(st.sampled_from([1, 2, 2.5, 3.7, 4])),
        num_classes=draw(st.integers(0, 12)),
    )


image_shapes = st.tuples(st.integers(1, 4), st.integers(32, 100), st.integers(32, 100))
seeds = st.integers(0, 2**32 - 1)
permutations = st.permutations(range(16)).map(np.array)


def normal(seed: int, *shape: int) -> np.ndarray:
    """Standard normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def noise(seed: int, height: int, width: int) -> np.ndarray:
    """The pixels of an RGB picture, 0 to 255."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
