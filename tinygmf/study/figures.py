"""The figures of `observe.py`, and a drawing of the network. They need matplotlib (`plots`).

Every function returns a matplotlib figure: a notebook shows it, `.savefig("name.png")` saves it.
Strengths, which are never negative, are drawn in viridis, whose order the colour-blind can see and
grey print keeps; signed values are drawn in red and blue with zero in the middle, so pale means
weak.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tinygmf.config import NUM_HEADS, PUBLISHED_SIZE, GroupMixFormerConfig
from tinygmf.files import counted
from tinygmf.model import GroupMixFormer
from tinygmf.study.observe import (
    Observation,
    Position,
    effective_kernel,
    head_label,
    receptive_field,
    rms,
)
from tinygmf.study.summary import StageSummary, summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = 2.3  # inches
STRENGTH, SIGNED, MARK = "viridis", "RdBu_r", "#d95f02"
STEM, STAGE, HEAD = "#bbbbbb", "#9ecae1", "#fdd0a2"


UNITS = {  # what the colours measure, in words, below each figure
    "responses": "RMS over channels: the root of the mean square of a token's numbers; 0 is no "
    "response, and each panel has a scale of its own",
    "attention": "attention weight: the token's part in what the marked place takes in, as in "
    "Q softmax(K)ᵀ; red is positive, blue negative, and a row does not sum to 1",
    "proxies": "RMS: the root of the mean square of a token's numbers, or of a kernel's weights; "
    "each panel has a scale of its own",
}


def has_matplotlib() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def require_matplotlib() -> None:
    """Raise ValueError, in one line, if matplotlib is missing."""
    if not has_matplotlib():
        raise ValueError(
            "figures need matplotlib: run pip install 'tinygmf[plots]', or save arrays (.npz)"
        ) from None


def show(figure: Figure, description: str) -> None:
    """A figure for a notebook, with a description for those who cannot see it."""
    show_growing(figure, description)


def show_growing(figure: Figure, description: str) -> Callable[[], Any]:
    """The same for an unfinished figure; the returned function redraws it."""
    from IPython.display import display

    described = {"image/png": {"alt": description}}
    handle = display(figure, metadata=described, display_id=True)
    return lambda: handle.update(figure, metadata=described)


def make_panels(rows: int, columns: int, width: float = PANEL, height: float = PANEL) -> Any:
    """A figure and its axes, an array (rows, columns), without ticks; sizes in inches."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), layout="constrained", dpi=88)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def draw_map(axis: Axes, values: np.ndarray, title: str, unit: str, most: float = 0.0) -> None:
    """Draw a map (h, w) with a title and a colour bar that says what the colours measure.

    Signed values, or any if `most` is given, are drawn from -most to most, by default their largest
    magnitude, so that zero always has the same colour and several maps can share a scale.
    """
    signed = most > 0 or bool(values.min() < 0)
    most = most or float(np.abs(values).max())
    low, high, cmap = (-most, most, SIGNED) if signed else (None, None, STRENGTH)
    image = axis.imshow(values, cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
    axis.set_title(title, fontsize=9)
    _add_bar(axis, image, unit)


def _add_bar(axis: Axes, image: Any, unit: str) -> None:
    """A colour bar below the map; the smallest and the largest value always have room."""
    bar = axis.figure.colorbar(image, ax=axis, location="bottom", fraction=0.05, pad=0.03)
    low, high = image.get_clim()
    bar.set_ticks([low, high], labels=[f"{low:.3g}", f"{high:.3g}"], fontsize=8)
    left, right = bar.ax.get_xticklabels()
    left.set_horizontalalignment("left")
    right.set_horizontalalignment("right")
    bar.set_label(unit, fontsize=8)


def _heading(seen: Observation) -> str:
    tokens = f"{seen.size[0]}x{seen.size[1]} tokens of {seen.stride}x{seen.stride} pixels"
    return f"stage {seen.stage}, block {seen.block}: {tokens}"


def draw_responses(
    pictures: Sequence[Image.Image],
    seen: Sequence[Observation],
    titles: Sequence[str] = (),
) -> Figure:
    """The paper's figure, one row per picture: the picture, then, drawn over it, the ensemble
    layer, the four pre-attention branches and the non-attention branch. `titles` name the pictures.
    """
    rows = [one.responses() for one in seen]
    figure, axes = make_panels(len(seen), 1 + len(rows[0]), 1.9, 2.5)
    labels = titles or ["picture"] * len(seen)
    for line, picture, maps, title in zip(axes, pictures, rows, labels, strict=True):
        line[0].imshow(picture)
        line[0].set_title(f"(a) {title}", fontsize=9)
        for letter, axis, (name, values) in zip("bcdefg", line[1:], maps.items(), strict=True):
            lay_over(axis, picture, values, "RMS over channels")
            axis.set_title(f"({letter}) {name}", fontsize=9)
    figure.suptitle(f"Responses, {_heading(seen[0])}", fontsize=11)
    figure.supxlabel(UNITS["responses"], fontsize=8)
    return figure


def draw_attention(
    pictures: Sequence[Image.Image],
    seen: Sequence[Observation],
    query: Position | Sequence[Position],
    titles: Sequence[str] = (),
) -> Figure:
    """What one place attends to, head by head, drawn over the picture: two rows per picture, and a
    column for each branch with its two heads. `query` is one place, in pixels of the pictures, or
    one for each picture; `titles` name the pictures.

    The weights are those of Q softmax(K)ᵀ: they can be negative, and a row sums to whatever the
    query's channels sum to. Each head has its own scale, shown by its colour bar.
    """
    figure, axes = make_panels(2 * len(seen), 1 + NUM_HEADS // 2, 2.2, 2.7)
    places: Any = [query] * len(seen) if isinstance(query[0], int) else query
    labels = titles or [f"query at y={y}, x={x}" for y, x in places]
    lines = zip(pictures, seen, places, labels, strict=True)
    for i, (picture, one, place, title) in enumerate(lines):
        plain, below = axes[2 * i : 2 * i + 2, 0]
        below.set_axis_off()
        plain.imshow(picture)
        plain.set_title(title, fontsize=9)
        _mark(plain, place)
        panels = axes[2 * i : 2 * i + 2, 1:].T  # (branches, 2)
        rows = one.attention_rows([place])[0]  # (heads, h, w)
        for head, axis in enumerate(panels.flat):
            draw_over_picture(axis, picture, rows[head], place, head_label(head))
    figure.suptitle(f"Attention of the marked place, {_heading(seen[0])}", fontsize=11)
    figure.supxlabel(UNITS["attention"], fontsize=8)
    return figure


def draw_over_picture(
    axis: Axes, picture: Image.Image, row: np.ndarray, query: Position, title: str
) -> None:
    """Draw a row of the attention map (h, w) over the picture in grey: red for positive weights,
    blue for negative ones; the weaker a weight, the more of the picture shows through."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    most = float(np.abs(row).max()) or 1.0
    extent = (-0.5, picture.width - 0.5, picture.height - 0.5, -0.5)
    axis.imshow(picture.convert("L"), cmap="gray", vmin=0, vmax=255, alpha=0.6)
    alpha: Any = 0.25 + 0.65 * np.abs(row) / most
    axis.imshow(
        row, SIGNED, vmin=-most, vmax=most, alpha=alpha, extent=extent, interpolation="nearest"
    )
    _mark(axis, query)
    axis.set_title(title, fontsize=8)
    _add_bar(axis, ScalarMappable(Normalize(-most, most), SIGNED), "attention weight")


def lay_over(axis: Axes, picture: Image.Image, values: np.ndarray, unit: str) -> None:
    """Draw a map (h, w), slightly transparent, over the picture in grey, with its colour bar."""
    extent = (-0.5, picture.width - 0.5, picture.height - 0.5, -0.5)
    axis.imshow(picture.convert("L"), cmap="gray", vmin=0, vmax=255)
    image = axis.imshow(values, cmap=STRENGTH, alpha=0.75, extent=extent, interpolation="nearest")
    _add_bar(axis, image, unit)


def _mark(axis: Axes, query: Position) -> None:
    y, x = query
    axis.plot(x, y, marker="P", markersize=10, color="white", markeredgecolor="black")


def draw_proxies(
    pictures: Sequence[Image.Image],
    seen: Sequence[Observation],
    model: GroupMixFormer,
    kernel: int,
    titles: Sequence[str] = (),
) -> Figure:
    """One group aggregator: its window on the picture, its kernel, its input and its output.
    `titles` name the pictures."""
    from matplotlib.patches import Rectangle

    first = seen[0]
    taps = effective_kernel(model, first.stage, first.block, kernel)
    field = receptive_field(model, first.stage, first.block, kernel)
    figure, axes = make_panels(len(seen), 4, 2.4, 2.9)
    labels = titles or [""] * len(seen)
    for line, picture, one, title in zip(axes, pictures, seen, labels, strict=True):
        line[0].imshow(picture)
        y, x = ((side // 2 + 0.5) * one.stride - 0.5 for side in one.size)
        for side, style in ((kernel * one.stride, "-"), (field, "--")):
            corner = (x - side / 2, y - side / 2)
            for color, width in (("white", 4.0), (MARK, 2.0)):  # visible on any picture
                frame = Rectangle(corner, side, side, fill=False, color=color, ls=style, lw=width)
                line[0].add_patch(frame)
        _show_all(line[0], picture, (y, x), field)
        sides = f"a group, {kernel * one.stride} pixels\n(dashed: it sees {field} pixels)"
        line[0].set_title("\n".join(filter(None, (title, sides))), fontsize=9)
        draw_map(line[1], rms(taps, (0, 1)), f"kernel {kernel}x{kernel}", "RMS over channels")
        before, after = one.before_and_after(kernel)
        draw_map(line[2], before, "before: tokens", "RMS over Q, K, V, channels")
        draw_map(line[3], after, "after: group proxies", "RMS over Q, K, V, channels")
    figure.suptitle(f"Aggregator {kernel}x{kernel}, {_heading(first)}", fontsize=11)
    figure.supxlabel(UNITS["proxies"], fontsize=8)
    return figure


def _show_all(axis: Axes, picture: Image.Image, middle: tuple[float, float], side: int) -> None:
    """Limits that include the picture and a square around `middle`; outside are zeros."""
    (y, x), half = middle, side / 2 + 1
    axis.set_facecolor("lightgrey")
    axis.set_xlim(min(-0.5, x - half), max(picture.width - 0.5, x + half))
    axis.set_ylim(max(picture.height - 0.5, y + half), min(-0.5, y - half))


def draw_architecture(
    config: GroupMixFormerConfig, image_size: tuple[int, int] = (PUBLISHED_SIZE, PUBLISHED_SIZE)
) -> Figure:
    """The network of a configuration, to scale: a box for each part, as high as the side of its map
    and as wide as its channels, a stage as wide as all its blocks together; costs are below."""
    from matplotlib.patches import Rectangle

    rows = summarize(config, image_size)
    figure, axes = make_panels(1, 1, 10, 3.6)
    axis, left = axes[0, 0], 0.0
    sides = [row.height / rows[0].height for row in rows]
    channels = [0 if row.name == "head" else row.channels for row in rows]
    widths = [max(row.blocks, 1) * c for row, c in zip(rows, channels, strict=True)]
    unit = 8.6 / sum(widths)
    for i, (row, side, width) in enumerate(zip(rows, sides, widths, strict=True)):
        colour = {"stem": STEM, "head": HEAD}.get(row.name, STAGE)
        size = max(unit * width, 0.04), max(2 * side, 0.04)
        axis.add_patch(Rectangle((left, -size[1] / 2), *size, fc=colour, ec="black", lw=0.8))
        for k in range(1, row.blocks):  # a line between one block and the next
            x = left + k * size[0] / row.blocks
            axis.plot([x, x], [-size[1] / 2, size[1] / 2], color="white", lw=1)
        middle, text = left + size[0] / 2, 0.75 + 1.65 * i
        axis.plot([middle, text], [-size[1] / 2, -1.4], color="#999999", lw=0.8)
        axis.text(text, -1.45, row.name, ha="center", va="top", fontsize=10, weight="bold")
        axis.text(text, -1.75, _caption(row), ha="center", va="top", fontsize=8)
        left += size[0] + 0.2
    axis.set(xlim=(-0.1, 9.9), ylim=(-3.0, 1.1), frame_on=False)
    height, width = image_size
    axis.set_title(f"GroupMixFormer on a picture of {height}x{width} pixels, to scale", fontsize=11)
    return figure


def _caption(row: StageSummary) -> str:
    if row.name == "head":
        lines = [counted(row.channels, "class"), "", ""]
    else:
        blocks = counted(row.blocks, "block") if row.blocks else ""
        lines = [f"{row.height}x{row.width} tokens", f"{row.channels} channels", blocks]
    costs = [f"{row.parameters / 1e6:.2f} M parameters", f"{row.flops / 1e9:.3f} G FLOPs"]
    return "\n".join(lines + costs)


def draw_head(picture: Image.Image, seen: Observation, query: Position, head: int) -> Figure:
    """The picture, and what the query attends to in one head (0 to 7)."""
    figure, axes = make_panels(1, 2, 3, 3.5)
    axes[0, 0].imshow(picture)
    axes[0, 0].set_title(_heading(seen).split(":")[0], fontsize=9)
    _mark(axes[0, 0], query)
    row = seen.attention_rows([query])[0, head]
    draw_over_picture(axes[0, 1], picture, row, query, head_label(head))
    return figure


def explore_attention(
    pictures: Sequence[Image.Image], blocks: dict[str, Sequence[Observation]]
) -> Any:
    """Sliders for a notebook that choose picture, block, query and head, and redraw `draw_head`.

    `blocks` holds observations of the same pictures under the names to choose from.
    """
    from ipywidgets import IntSlider, interactive

    def show(picture: int, block: str, y: int, x: int, head: int) -> Figure:
        return draw_head(pictures[picture], blocks[block][picture], (y, x), head - 1)

    height, width = next(iter(blocks.values()))[0].picture_size
    return interactive(
        show,
        {"auto_display": True},
        picture=IntSlider(0, 0, len(pictures) - 1),
        block=list(blocks),
        y=IntSlider(height // 2, 0, height - 1),
        x=IntSlider(width // 2, 0, width - 1),
        head=IntSlider(1, 1, NUM_HEADS),
    )
