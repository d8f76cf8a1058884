"""A table that a notebook shows as a table, and a terminal as aligned text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Table:
    """Headings and rows of cells, shown as `str` formats them; the first cell of a row names it.

    Raises ValueError for a row with a different number of cells.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"row: expected {len(self.header)} cells, found {list(row)}")

    def __repr__(self) -> str:
        lines = [list(map(str, row)) for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(_aligned(line, widths) for line in lines)

    def _repr_html_(self) -> str:
        """The HTML that Jupyter shows, as do pages made from a notebook."""
        head = _html_row([f"<th>{escape(name)}</th>" for name in self.header])
        rows = []
        for first, *others in self.rows:
            cells = [f"<td>{escape(str(cell))}</td>" for cell in others]
            rows.append(_html_row([f"<th>{escape(str(first))}</th>", *cells]))
        return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return "  ".join(padded).rstrip()


def _html_row(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(cells)}</tr>"
