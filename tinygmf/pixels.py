"""The pixels of any Pillow image or array as upright 8-bit RGB.

White depends on the picture's type: 65535 for 16 bits, 1 for floats.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from tinygmf.files import one_line

FLOATS = (1.0, 255.0, 65535.0)  # no file says what white is in its floats
INTEGERS = (255.0, 65535.0)  # nor does an array of wide integers
MOST_CHANNELS = 4

# TIFF's tags; EXIF has the last one too
BITS, PHOTOMETRIC, SAMPLE_FORMAT, ORIENTATION = 258, 262, 339, 0x0112
WHITE_IS_ZERO, SIGNED = 0, 2
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """Not a readable picture; the message is one line that says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def image_to_rgb(image: Image.Image, exif: bytes | None = None) -> Image.Image:
    """Convert an image of any mode to upright RGB: alpha is dropped, deep grey scaled.

    `exif` replaces the image's EXIF if that was read elsewhere. Pillow's decoders may raise any
    Exception.
    """
    image.load()
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    turn = TURNS.get(_orientation(image, tags, exif))
    if type(image) is Image.Image and image.mode == "RGB" and turn is None:
        return image
    whites = _whites(image, tags)
    rgb = (_grey(image, tags, whites) if whites else image).convert("RGB")
    rgb = rgb if turn is None else rgb.transpose(turn)
    rgb.info = {}  # it is upright now
    return rgb


def _orientation(image: Image.Image, tags: Mapping[int, Any], exif: bytes | None) -> int:
    if tags:
        value = tags.get(ORIENTATION, 1)
        return value if isinstance(value, int) else 1
    data = exif or image.info.get("exif") or _raw_profile(image)
    return exif_orientation(data) if isinstance(data, bytes) else 1


def _raw_profile(image: Image.Image) -> bytes:
    """Return the EXIF that ImageMagick writes into a PNG: lines of hexadecimal digits."""
    lines = str(image.info.get("Raw profile type exif", "")).split("\n")[3:]
    try:
        return bytes.fromhex("".join(lines))
    except ValueError:
        return b""


def exif_orientation(data: bytes) -> int:
    """Return the orientation, 1 to 8, from EXIF's first directory, else 1.

    Nothing else is read, so damage elsewhere is harmless.
    """
    data = data.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", data, place)
            if tag == ORIENTATION:
                form = {1: "B", 3: "H", 4: "I"}.get(kind, "H")
                return int(struct.unpack_from(order + form, data, place + 8)[0])
    except struct.error:
        pass
    return 1


def _whites(image: Image.Image, tags: Mapping[int, Any]) -> Sequence[float]:
    """Return the values that may be white in deep or signed grey; none for other images."""
    bits, signed = _first(tags.get(BITS), 16), _first(tags.get(SAMPLE_FORMAT), 1) == SIGNED
    if image.mode == "F":
        return FLOATS
    if image.mode.startswith("I;16"):
        return (2.0**bits - 1,)
    if image.mode == "I" and tags:
        return (2.0**15 - 1,) if bits == 16 else (65535.0, 2.0 ** (bits - signed) - 1)
    if image.mode == "I":  # from a PNG or PGM it holds 16 bits
        return (65535.0,) if image.format else INTEGERS
    return (127.0,) if image.mode == "L" and signed else ()


def _first(value: Any, otherwise: int) -> int:
    """Return a tag's number, or the first of several."""
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else otherwise


def _grey(image: Image.Image, tags: Mapping[int, Any], whites: Sequence[float]) -> Image.Image:
    values = np.array(image)
    if image.mode == "L":
        values = values.view(np.int8)
    elif image.mode == "I" and tags and _first(tags.get(SAMPLE_FORMAT), 1) != SIGNED:
        values = values.view(np.uint32)
    inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    return Image.fromarray(_scale(values, whites, inverted))


def _scale(values: np.ndarray, whites: Sequence[float], inverted: bool = False) -> np.ndarray:
    """Scale to bytes: white is the first of `whites` that no value exceeds, else the maximum."""
    scaled = np.array(values, np.float32)  # one copy, changed in place: it may be large
    np.maximum(np.nan_to_num(scaled, copy=False), 0, out=scaled)
    greatest = float(scaled.max(initial=0))
    white = next((white for white in whites if greatest <= np.float32(white)), greatest)
    if inverted:
        np.subtract(white, scaled, out=scaled)
    np.rint(np.multiply(scaled, 255 / white, out=scaled), out=scaled)
    return scaled.astype(np.uint8)


def array_to_rgb(array: np.ndarray) -> Image.Image:
    """Convert (H, W), (H, W, C) or (C, H, W), C of 1 to 4, to RGB; a second or fourth is alpha.

    Bytes and 16 bits have their own white, bool is black and white, floats go from 0 to 1.
    Floats or wide integers above that are taken as 0 to 255, or to 65535. Raises ImageError for
    other arrays, and for values below 0.
    """
    planes = _planes(array)  # (H, W) or (H, W, 3)
    kind, width = array.dtype.kind, array.dtype.itemsize
    if kind == "b":
        planes = planes * np.uint8(255)
    elif kind == "u" and width == 2:  # colour as Pillow reads it from files: the high byte
        planes = (planes >> 8) if planes.ndim == 3 else _scale(planes, (65535.0,))
    elif kind != "u" or width > 2:
        if np.min(planes, initial=0) < 0:
            raise ImageError(
                f"expected values of a picture, 0 to 1 in floats, found {np.min(planes):.6g}: "
                "normalized pictures are (3, size, size), of the network's own size"
            )
        planes = _scale(planes, FLOATS if kind == "f" else INTEGERS)
    return Image.fromarray(np.ascontiguousarray(planes, np.uint8)).convert("RGB")


def _planes(array: np.ndarray) -> np.ndarray:
    """Grey (H, W) or colour (H, W, 3) of an array of any layout, without alpha."""
    if array.dtype.kind not in "buif" or array.ndim not in (2, 3) or 0 in array.shape:
        raise ImageError(
            f"expected an array (H, W), (H, W, C) or (C, H, W) of numbers, found {array.shape} "
            f"{array.dtype}: convert it"
        )
    if array.ndim == 2:
        return array
    if array.shape[2] > MOST_CHANNELS:
        array = np.moveaxis(array, 0, 2)
    channels = array.shape[2]
    if channels > MOST_CHANNELS:
        raise ImageError(
            f"expected 1 to {MOST_CHANNELS} channels, first or last, found an array {array.shape}: "
            "choose three"
        )
    return array[..., 0] if channels < 3 else array[..., :3]
