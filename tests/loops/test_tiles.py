"""Tiles: for every processor a map of any size is covered, and the kernels are right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal

from tinygmf.loops import inference, tiles
from tinygmf.tensors import tensor_from_numpy

TABLES = [(table, name) for table in (tiles.PRODUCT, tiles.WINDOWS) for name in table]
SIZES = st.integers(1, 700)


def test_both_tables_know_the_same_processors():
    assert tiles.PRODUCT.keys() == tiles.WINDOWS.keys()
    assert tiles.registers() in tiles.PRODUCT


@pytest.mark.parametrize(("table", "name"), TABLES)
@given(tokens=SIZES, channels=SIZES)
def test_a_tile_fits_the_map_and_an_exact_one_divides_it(table, name, tokens, channels):
    with tiles.for_machine(registers=name):
        m, c, _ = tiles.best_tile(table, tokens, channels)
        assert 1 <= m <= tokens and 1 <= c <= channels
        m, c, _ = tiles.best_tile(table, tokens, channels, exact=True)
        assert tokens % m == 0 and channels % c == 0


@pytest.mark.parametrize("name", ["avx512", "zen4"])
@given(tokens=SIZES, vectors=st.integers(1, 80), exact=st.booleans())
def test_no_tile_of_whole_vectors_is_one_that_clang_unrolls(name, tokens, vectors, exact):
    with tiles.for_machine(registers=name):
        m, c, _ = tiles.best_tile(tiles.PRODUCT, tokens, 8 * vectors, exact)
    assert not tiles.is_unrolled(m, c)


@pytest.mark.parametrize("name", sorted(tiles.PRODUCT))
def test_a_product_of_ragged_tiles_is_numpys(name):
    x, weight = normal(0, 1, 1, 19, 9), normal(1, 1, 1, 9, 45)
    with tiles.for_machine(registers=name):
        found = inference.dense(tensor_from_numpy(x), tensor_from_numpy(weight)).numpy()
    assert np.abs(found - x @ weight[0]).max() < 1e-4


def test_kernels_for_another_machine_have_its_tiles_and_later_ones_this_machines():
    own = tiles.registers()
    for name in tiles.PRODUCT:
        with tiles.for_machine(registers=name):
            assert tiles.registers() == name
            m, c, _ = tiles.best_tile(tiles.PRODUCT, 10**6, 10**6)
            assert (m, c) in [known[:2] for known in tiles.PRODUCT[name]]
    assert tiles.registers() == own
