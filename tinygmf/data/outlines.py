"""Outlines of objects in files: polygons and run-length codes, to masks and back.

A mask is (H, W) bool. The run-length code is COCO's: the lengths of runs of pixels, column by
column from the left, of background and object in turn, background first; its compressed form
writes each length minus the one before the last, in chunks of five bits, as printable characters.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinygmf.data.annotations import AnnotationError

EDGES = 256  # of a polygon, processed at a time
MOST_CHUNKS = 7  # of five bits, for one length: more than any picture needs


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """Masks (n, H, W) -> (n, 4) float32: the smallest box (x0, y0, x1, y1) around each, in pixels.

    Pixel (row y, column x) reaches from (x, y) to (x + 1, y + 1). An empty mask gives zeros.
    """
    edges = []
    for axis in (1, 2):
        found = np.max(masks, axis, initial=False)  # columns (n, W), then rows (n, H)
        last = found.shape[1] - found[:, ::-1].argmax(1)
        edges.append((found.argmax(1), np.where(found.max(1), last, 0)))
    (x0, x1), (y0, y1) = edges
    return np.stack([x0, y0, x1, y1], 1).astype(np.float32)


def polygon_mask(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Polygons, each (k, 2) of x, y in pixels -> (H, W) bool: the pixels whose centre is in one.

    A point is inside if a ray from it crosses an odd number of edges; the result is the union.
    """
    mask = np.zeros((height, width), bool)
    for polygon in polygons:
        mask |= _inside(np.asarray(polygon, np.float64), height, width)
    return mask


def _inside(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    edges = np.stack([polygon, np.roll(polygon, -1, 0)], 1)  # (k, 2 ends, 2)
    edges = np.take_along_axis(edges, edges[:, :, 1:].argsort(1), 1)  # the upper end first
    crossed = np.zeros((height, width + 1), bool)
    for start in range(0, len(edges), EDGES):
        (x0, y0), (x1, y1) = edges[start : start + EDGES].transpose(1, 2, 0)
        # Rows whose centre is at or below the upper end and above the lower one
        first, last = (np.clip(np.ceil(y - 0.5), 0, height).astype(int) for y in (y0, y1))
        edge = np.repeat(np.arange(len(first)), last - first)
        rows = np.arange(len(edge)) - np.searchsorted(edge, edge) + first[edge]
        slope = (x1 - x0) / np.maximum(y1 - y0, 1e-12)
        x = x0[edge] + (rows + 0.5 - y0[edge]) * slope[edge]
        columns = np.clip(np.ceil(x - 0.5), 0, width).astype(int)
        np.logical_xor.at(crossed, (rows, columns), True)
    return np.logical_xor.accumulate(crossed, 1)[:, :width]


def decode(counts: np.ndarray, height: int, width: int) -> np.ndarray:
    """Run lengths that add up to height times width -> (H, W) bool.

    Row by row, as pixels lie in memory; rows without an end of a run are like the one before.
    """
    ends = np.cumsum(counts)[:-1]
    row = np.searchsorted(ends, np.arange(width) * height, "right") % 2 == 1  # the first
    rows, columns = ends % height, ends // height
    order = np.argsort(rows, kind="stable")[np.count_nonzero(rows == 0) :]
    rows, columns = rows[order], columns[order]
    places, starts = np.unique(rows, return_index=True)
    mask, last = np.zeros((height, width), bool), 0
    for place, changed in zip(places, np.split(columns, starts[1:]), strict=False):
        mask[last:place], last = row, place
        np.logical_xor.at(row, changed, True)
    mask[last:] = row
    return mask


def encode(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) bool -> COCO's compressed run-length code, {"size": [H, W], "counts": "…"}."""
    changes = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False))
    counts = np.diff(changes, prepend=0, append=mask.size)
    return {"size": list(mask.shape), "counts": compress(counts.tolist())}


def compress(counts: list[int]) -> str:
    """Run lengths -> COCO's compressed form."""
    text = []
    for i, count in enumerate(counts):
        rest = count - counts[i - 2] if i > 2 else count
        while True:
            chunk, rest = rest & 31, rest >> 5
            more = rest != (-1 if chunk & 16 else 0)
            text.append(chr(48 + chunk + 32 * more))
            if not more:
                break
    return "".join(text)


def uncompress(text: str) -> list[int]:
    """COCO's compressed form -> run lengths, not checked yet."""
    counts: list[int] = []
    value = chunks = 0
    for character in text.encode("ascii", "replace"):
        code = character - 48
        if not 0 <= code < 64 or chunks == MOST_CHUNKS:
            raise AnnotationError(f"expected a run-length code, found {text[:20]!r}")
        value |= (code & 31) << (5 * chunks)
        chunks += 1
        if code < 32:  # the last chunk of this length: its highest bit is the sign
            value -= (code & 16) << (5 * chunks - 4)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = chunks = 0
    if chunks:
        raise AnnotationError("expected a run-length code, found a truncated one")
    return counts


def read_outline(found: Any, size: tuple[int, int] | None) -> list[np.ndarray] | np.ndarray:
    """What COCO's "segmentation" holds -> polygons, each (k, 2), or run lengths.

    `size` is the picture's width and height. Raises AnnotationError.
    """
    if isinstance(found, dict):
        return _read_runs(found, size)
    if not isinstance(found, list) or not found:
        raise AnnotationError("expected a mask, polygons or a run-length code, found none")
    return [read_polygon(polygon) for polygon in found]


def read_polygon(numbers: Any) -> np.ndarray:
    """x, y, x, y … -> (k, 2) float32. Raises AnnotationError."""
    try:
        polygon = np.array(numbers, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise AnnotationError("expected a polygon of numbers, found something else") from None
    if polygon.ndim != 1 or len(polygon) < 6 or len(polygon) % 2:
        raise AnnotationError(
            f"expected a polygon of 3 or more points, found {polygon.size} numbers"
        )
    if not (np.abs(polygon) < 1e6).all():  # NaN fails too
        raise AnnotationError("expected a polygon in pixels, found a number beyond any picture")
    return polygon.reshape(-1, 2).astype(np.float32)


def _read_runs(found: dict, size: tuple[int, int] | None) -> np.ndarray:
    expected = list(size[::-1]) if size else "of a known picture"
    if size is None or found.get("size") != expected:
        raise AnnotationError(
            f"expected a mask of height, width {expected}, found {found.get('size')}"
        )
    counts = found.get("counts")
    if isinstance(counts, str):
        counts = uncompress(counts)
    if (
        not isinstance(counts, list)
        or not all(type(n) is int and 0 <= n < 2**31 for n in counts)
        or sum(counts) != size[0] * size[1]
    ):
        raise AnnotationError(f"expected runs of {size[0] * size[1]} pixels in all, found others")
    return np.array(counts, np.int32)
