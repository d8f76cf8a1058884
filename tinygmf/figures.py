"""The figures of `explain.py`, and a drawing of the network. They need matplotlib (`plots`).

Every function returns a matplotlib figure: a notebook shows it, `.savefig("name.png")` saves it.
The colour maps, viridis and cividis, keep their order for the colour-blind and in grey print.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tinygmf.config import NUM_HEADS, GroupMixFormerConfig
from tinygmf.explain import (
    Observation,
    Position,
    effective_kernel,
    head_label,
    receptive_field,
    rms,
)
from tinygmf.model import GroupMixFormer
from tinygmf.summary import StageSummary, summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = 2.3  # inches
STRENGTH, ATTENTION = "viridis", "cividis"
STEM, STAGE, HEAD = "#bbbbbb", "#9ecae1", "#fdd0a2"


def require_matplotlib() -> None:
    """ValueError, in one line, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError(
            "figures need matplotlib: run pip install 'tinygmf[plots]', or save arrays (.npz)"
        ) from None


def make_panels(rows: int, columns: int, width: float = PANEL, height: float = PANEL) -> Any:
    """A figure and its axes, an array (rows, columns), without ticks; sizes in inches."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), layout="constrained", dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def draw_map(axis: Axes, values: np.ndarray, title: str, unit: str, cmap: str = STRENGTH) -> None:
    """A map (h, w) with its title and a colour bar that says what the colours measure."""
    image = axis.imshow(values, cmap=cmap, interpolation="nearest")
    axis.set_title(title, fontsize=9)
    _add_bar(axis, image, unit)


def _add_bar(axis: Axes, image: Any, unit: str) -> None:
    bar = axis.figure.colorbar(image, ax=axis, location="bottom", fraction=0.05, pad=0.03)
    bar.ax.tick_params(labelsize=7)
    bar.ax.locator_params(nbins=4)
    bar.set_label(unit, fontsize=7)


def _heading(seen: Observation) -> str:
    tokens = f"{seen.size[0]}x{seen.size[1]} tokens of {seen.stride}x{seen.stride} pixels"
    return f"stage {seen.stage}, block {seen.block}: {tokens}"


def draw_responses(pictures: Sequence[Image.Image], seen: Sequence[Observation]) -> Figure:
    """The article's figure, a row for each picture: the picture, the ensemble layer, the four
    pre-attention branches, the non-attention branch."""
    rows = [one.responses() for one in seen]
    figure, axes = make_panels(len(seen), 1 + len(rows[0]), 1.9, 2.5)
    for line, picture, maps in zip(axes, pictures, rows, strict=True):
        line[0].imshow(picture)
        line[0].set_title("(a) picture", fontsize=9)
        for letter, axis, (name, values) in zip("bcdefg", line[1:], maps.items(), strict=True):
            draw_map(axis, values, f"({letter}) {name}", "RMS over channels")
    figure.suptitle(f"Responses, {_heading(seen[0])}", fontsize=11)
    return figure


def draw_attention(
    pictures: Sequence[Image.Image], seen: Sequence[Observation], query: Position
) -> Figure:
    """What one place attends to, head by head, laid over the picture; a row for each picture.

    The weights are those of Q softmax(K)ᵀ: they can be negative, and a row sums to whatever the
    query's channels sum to.
    """
    figure, axes = make_panels(2 * len(seen), NUM_HEADS // 2, height=2.9)
    lines = axes.reshape(len(seen), 2, NUM_HEADS // 2).transpose(0, 2, 1)
    for line, picture, one in zip(lines, pictures, seen, strict=True):
        rows = one.attention_rows([query])[0]  # (heads, h, w)
        for head, axis in enumerate(line.flat):  # a column is a branch, with its two heads
            draw_over_picture(axis, picture, rows[head], query, head_label(head))
    figure.suptitle(f"Attention of the marked place, {_heading(seen[0])}", fontsize=11)
    return figure


def draw_over_picture(
    axis: Axes, picture: Image.Image, row: np.ndarray, query: Position, title: str
) -> None:
    """A row of the attention map (h, w), transparent over the picture in grey."""
    extent = (-0.5, picture.width - 0.5, picture.height - 0.5, -0.5)
    axis.imshow(picture.convert("L"), cmap="gray", vmin=0, vmax=255)
    image = axis.imshow(row, cmap=ATTENTION, alpha=0.75, extent=extent, interpolation="nearest")
    y, x = query
    axis.plot(x, y, marker="P", markersize=9, color="white", markeredgecolor="black")
    axis.set_title(title, fontsize=8)
    _add_bar(axis, image, "attention weight")


def draw_proxies(
    pictures: Sequence[Image.Image],
    seen: Sequence[Observation],
    model: GroupMixFormer,
    kernel: int,
) -> Figure:
    """One group aggregator: its window on the picture, its kernel, its input and its output."""
    from matplotlib.patches import Rectangle

    first = seen[0]
    taps = effective_kernel(model, first.stage, first.block, kernel)
    field = receptive_field(first.stage, first.block, kernel, model.config.serial_depths)
    figure, axes = make_panels(len(seen), 4, height=2.9)
    for line, picture, one in zip(axes, pictures, seen, strict=True):
        line[0].imshow(picture)
        middle = (one.size[0] // 2 + 0.5) * one.stride - 0.5, (
            one.size[1] // 2 + 0.5
        ) * one.stride - 0.5
        for side, style, name in (
            (kernel * one.stride, "-", f"group, {kernel * one.stride} pixels"),
            (field, "--", f"seen, {field} pixels"),
        ):
            corner = (middle[1] - side / 2, middle[0] - side / 2)
            line[0].add_patch(
                Rectangle(corner, side, side, fill=False, color="#d95f02", ls=style, label=name)
            )
        line[0].set_title("one group in the picture", fontsize=9)
        line[0].legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 0))
        draw_map(line[1], rms(taps, (0, 1)), f"kernel {kernel}x{kernel}", "RMS over channels")
        before, after = one.before_and_after(kernel)
        draw_map(line[2], before, "before: tokens", "RMS over Q, K, V and channels")
        draw_map(line[3], after, "after: group proxies", "RMS over Q, K, V and channels")
    figure.suptitle(f"Aggregator {kernel}x{kernel}, {_heading(first)}", fontsize=11)
    return figure


def draw_architecture(
    config: GroupMixFormerConfig, image_size: tuple[int, int] = (224, 224)
) -> Figure:
    """The network from its configuration: a box for each part, as high as its map (in the square
    root of pixels), as wide as its channels (likewise), with what it costs."""
    from matplotlib.patches import Rectangle

    rows = summarize(config, image_size)
    figure, axes = make_panels(1, 1, 9, 3.2)
    axis, left = axes[0, 0], 0.0
    for row in rows:
        colour = {"stem": STEM, "head": HEAD}.get(row.name, STAGE)
        width, height = 0.6 + np.sqrt(row.channels) / 16, 0.4 + np.sqrt(row.height) / 4
        axis.add_patch(Rectangle((left, -height / 2), width, height, fc=colour, ec="black"))
        for k in range(1, row.blocks):  # a line between one block and the next
            x = left + k * width / row.blocks
            axis.plot([x, x], [-height / 2, height / 2], color="white", lw=1)
        middle = left + width / 2
        axis.text(middle, 1.35, row.name, ha="center", fontsize=10, weight="bold")
        axis.text(middle, -1.3, _caption(row), ha="center", va="top", fontsize=8)
        if left:
            axis.annotate("", (left, 0), (left - 0.55, 0), arrowprops={"arrowstyle": "->"})
        left += width + 0.6
    axis.set(xlim=(-0.4, left - 0.2), ylim=(-2.6, 1.7), frame_on=False)
    height, width = image_size
    axis.set_title(f"GroupMixFormer on a picture of {height}x{width} pixels", fontsize=11)
    return figure


def _caption(row: StageSummary) -> str:
    shape = f"{row.height}x{row.width}, {row.channels} channels"
    if row.name == "head":
        shape = f"{row.channels} classes"
    blocks = f"\n{row.blocks} block{'s' if row.blocks > 1 else ''}" if row.blocks else "\n"
    return f"{shape}{blocks}\n{row.parameters / 1e6:.2f} M parameters\n{row.flops / 1e9:.3f} G FLOPs"
