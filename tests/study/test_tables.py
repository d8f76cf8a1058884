"""Tables: every cell is there, in both forms."""

from xml.etree import ElementTree

import pytest

from tinygmf.study.tables import Table


def test_a_table_is_aligned_text_and_html():
    table = Table(["", "a<b"], [["one", 1], ["four & five", 2.5]])
    assert repr(table).splitlines() == [
        "             a<b",
        "one            1",
        "four & five  2.5",
    ]
    tree = ElementTree.fromstring(table._repr_html_())
    cells = [[cell.text or "" for cell in row] for row in tree.iter("tr")]
    assert cells == [["", "a<b"], ["one", "1"], ["four & five", "2.5"]]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="expected 2 cells"):
        Table(["a", "b"], [[1]])
