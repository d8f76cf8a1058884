"""Class maps and detections drawn over their picture, for people to look at.

The colours are Okabe and Ito's, which can be told apart with any kind of colour vision. Further
classes get lighter and darker versions, and every region and box is labeled as well. Lines are
white edged with black, or a class's colour edged with both, so that they stand out on any picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tinygmf.dense.detections import Detections
from tinygmf.files import one_line

Array = np.ndarray
Colour = tuple[int, int, int]
Plate = tuple[float, float, float, float]  # left, top, right, bottom

PALETTE: list[Colour] = [
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
]
LIGHTER, DARKER = 0.45, 0.55  # for the second and the third round of the palette
TINT = 0.45  # of a class's colour over the picture
SHORTEST = 512  # pixels: a smaller picture is enlarged, so that names can be read
NAMED = 0.01  # smallest share of a picture for a region to be labeled
BACKGROUND = "background"  # left as it is


def colour_of(number: int) -> Colour:
    """The colour of class `number`, counting those that have one."""
    turn, place = divmod(number, len(PALETTE))
    part = {1: LIGHTER, 2: -DARKER}.get(turn % 3, 0.0)
    end = 255 if part > 0 else 0
    red, green, blue = (round(c + abs(part) * (end - c)) for c in PALETTE[place])
    return red, green, blue


def colours_of(names: Sequence[str]) -> list[Colour | None]:
    """A colour for each class; None for the background, which is not drawn."""
    number, found = 0, []
    for name in names:
        found.append(None if name == BACKGROUND else colour_of(number))
        number += name != BACKGROUND
    return found


def names_for(names: Sequence[str], count: int) -> list[str]:
    """The names of `count` classes, or their numbers if the names are missing."""
    return [one_line(name) for name in names] if len(names) == count else [*map(str, range(count))]


def scale_of(size: tuple[int, int]) -> int:
    """The factor by which a picture is enlarged."""
    return -(-SHORTEST // min(size)) if min(size) < SHORTEST else 1


def draw_segmentation(picture: Array, classes: Array, names: Sequence[str]) -> Image.Image:
    """Draw the class of each pixel (H, W) over a picture (H, W, 3) uint8: tinted, outlined and
    labeled, with a legend that gives each class's share of the picture."""
    colours, scale = colours_of(names), scale_of(classes.shape)
    table = np.array([c or (0, 0, 0) for c in colours], np.float32)
    tint = np.array([TINT * (c is not None) for c in colours], np.float32)
    canvas = enlarged(picture, scale)
    classes = classes.repeat(scale, 0).repeat(scale, 1)
    share = tint[classes][..., None]
    pixels = np.asarray(canvas, np.float32) * (1 - share) + table[classes] * share
    canvas = Image.fromarray(pixels.astype(np.uint8))
    edge = np.zeros(classes.shape, bool)
    edge[:, 1:] = classes[:, 1:] != classes[:, :-1]
    edge[1:] |= classes[1:] != classes[:-1]
    outline(canvas, edge, ((5, (0, 0, 0)), (3, (255, 255, 255))))
    draw = ImageDraw.Draw(canvas)
    counts = np.bincount(classes.ravel(), minlength=len(names))
    entries: list[tuple[Colour, str]] = []
    taken: list[Plate] = []
    for number in map(int, np.argsort(-counts, kind="stable")):
        colour, part = colours[number], counts[number] / classes.size
        if colour is not None and part:
            entries.append((colour, f"{names[number]} {part:.0%}"))
            if part >= NAMED:
                label(draw, middle_of(classes == number), names[number], colour, canvas.size, taken)
    return with_legend(canvas, entries)


def draw_detections(picture: Array, found: Detections, names: Sequence[str]) -> Image.Image:
    """Draw detections over a picture (H, W, 3) uint8: boxes, or masks if there are any, each
    labeled with its class, `names[label]`, and its score."""
    colours, scale = colours_of(names), scale_of(picture.shape[:2])
    canvas = enlarged(picture, scale)
    order = range(len(found) - 1, -1, -1)  # the best on top
    for i in order:
        colour = colours[found.labels[i]] or PALETTE[0]
        if found.masks is not None:
            paint_mask(canvas, found.masks[i].repeat(scale, 0).repeat(scale, 1), colour)
        else:
            frame(ImageDraw.Draw(canvas), found.boxes[i] * scale, colour)
    draw, counts = ImageDraw.Draw(canvas), np.bincount(found.labels, minlength=len(names))
    taken: list[Plate] = []
    for i in reversed(order):  # the best gets the place it wants
        x0, y0, x1, _ = (float(value) for value in found.boxes[i] * scale)
        text = f"{names[found.labels[i]]} {found.scores[i]:.0%}"
        colour = colours[found.labels[i]] or PALETTE[0]
        label(draw, ((x0 + x1) / 2, y0), text, colour, canvas.size, taken)
    entries = [
        (colours[number] or PALETTE[0], f"{names[number]} {counts[number]}")
        for number in map(int, np.flatnonzero(counts))
    ]
    return with_legend(canvas, entries or [((128, 128, 128), "nothing found")])


def enlarged(picture: Array, scale: int) -> Image.Image:
    image = Image.fromarray(picture)
    if scale == 1:
        return image
    size = image.width * scale, image.height * scale
    return image.resize(size, Image.Resampling.BICUBIC)


def outline(canvas: Image.Image, line: Array, passes: Sequence[tuple[int, Colour]]) -> None:
    """Draw a line (H, W) bool, dilated to each of the widths in its colour."""
    drawn = Image.fromarray(np.uint8(255 * line))
    for width, colour in passes:
        canvas.paste(colour, mask=drawn.filter(ImageFilter.MaxFilter(width)))


def paint_mask(canvas: Image.Image, mask: Array, colour: Colour) -> None:
    drawn = Image.fromarray(np.uint8(255 * mask))
    canvas.paste(colour, mask=drawn.point(lambda value: round(value * TINT)))
    inner = np.asarray(drawn.filter(ImageFilter.MinFilter(3)))
    rim = mask & (inner == 0)
    outline(canvas, rim, ((7, (0, 0, 0)), (5, (255, 255, 255)), (3, colour)))


def frame(draw: ImageDraw.ImageDraw, box: Array, colour: Colour) -> None:
    x0, y0, x1, y1 = (float(v) for v in box)
    for grow, width, shade in ((2, 7, (0, 0, 0)), (1, 5, (255, 255, 255)), (0, 3, colour)):
        corners = x0 - grow, y0 - grow, max(x1 + grow, x0), max(y1 + grow, y0)
        draw.rectangle(corners, outline=shade, width=width)


def middle_of(region: Array) -> tuple[float, float]:
    """A point (x, y) well inside a region (H, W): roughly the one furthest from its rim."""
    step = max(1, min(region.shape) // 128)
    small = region[::step, ::step]
    if not small.any():
        step, small = 1, region
    drawn, last = Image.fromarray(np.uint8(255 * small)), small
    while last.any():
        found, drawn = last, drawn.filter(ImageFilter.MinFilter(3))
        last = np.asarray(drawn) > 0
        last = (
            last & np.pad(np.ones(np.array(last.shape) - 2, bool), 1)
            if min(last.shape) > 2
            else last & False
        )
    rows, columns = np.nonzero(found)
    centre = np.array([rows.mean(), columns.mean()])
    nearest = np.abs(np.stack([rows, columns], 1) - centre).sum(1).argmin()
    return float(columns[nearest] * step), float(rows[nearest] * step)


def label(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    colour: Colour,
    size: tuple[int, int],
    taken: list[Plate],
) -> None:
    """Draw a name on a plate of its colour, centred on `place` (x, y) or where there is room
    nearby, inside the picture; add the plate to those `taken`."""
    font = font_for(text, 16)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font, anchor="mm")
    plate = placed(place, (right - left + 12, bottom - top + 10), size, taken)
    taken.append(plate)
    draw.rounded_rectangle(plate, 4, fill=colour, outline=(0, 0, 0), width=1)
    middle = (plate[0] + plate[2]) / 2, (plate[1] + plate[3]) / 2
    draw.text(middle, text, fill=ink(colour), font=font, anchor="mm")


def placed(
    place: tuple[float, float],
    plate: tuple[float, float],
    size: tuple[int, int],
    taken: Sequence[Plate],
) -> Plate:
    """Where to put a plate of width and height `plate`: inside the picture, and clear of those
    `taken` if a few steps down or up are enough."""
    width, height = plate
    for step in (0, 1, -1, 2, -2, 3, -3, 4, -4):
        at = place[0], place[1] + step * (height + 2)
        left, top = (
            min(max(middle - side / 2, 0), max(whole - side, 0))
            for middle, side, whole in zip(at, plate, size, strict=True)
        )
        found = left, top, left + width, top + height
        if not any(covers(found, other) for other in taken):
            return found
    return found


def covers(first: Plate, second: Plate) -> bool:
    beside = first[2] <= second[0] or second[2] <= first[0]
    return not (beside or first[3] <= second[1] or second[3] <= first[1])


def ink(colour: Colour) -> Colour:
    """Black or white, whichever is easier to read on the colour."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else (255, 255, 255)


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which has only the letters of English, or for other text that of
    matplotlib, if it is installed, or of the system."""
    return ImageFont.load_default(size) if text.isascii() else _wide_font(size)


@cache
def _wide_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    plots = find_spec("matplotlib")
    folders = plots.submodule_search_locations if plots else None
    own = [Path(folder, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf") for folder in folders or ()]
    for name in (*map(str, own), "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf"):
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def with_legend(picture: Image.Image, entries: Sequence[tuple[Colour, str]]) -> Image.Image:
    """The picture with its legend below, in as many rows as it takes."""
    font, row, swatch, gap = font_for("".join(text for _, text in entries), 18), 30, 18, 24
    places, x, y = [], gap // 2, 0
    for _, text in entries:
        width = swatch + 8 + int(font.getlength(text)) + gap
        if x > gap and x + width > picture.width:
            x, y = gap // 2, y + row
        places.append((x, y))
        x += width
    sheet = Image.new("RGB", (picture.width, picture.height + y + row + 6), "white")
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    for (colour, text), (x, y) in zip(entries, places, strict=True):
        top = picture.height + y + 8
        draw.rectangle((x, top, x + swatch, top + swatch), fill=colour, outline=(0, 0, 0))
        draw.text((x + swatch + 8, top + swatch // 2), text, fill="black", font=font, anchor="lm")
    return sheet
