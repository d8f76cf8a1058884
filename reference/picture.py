"""Read an image from a PPM file (https://netpbm.sourceforge.net/doc/ppm.html), 8 bits a colour.

Most image programs write PPM: a line of text with the size, then the colours.
"""

import re
from pathlib import Path

from .ops import Map

# The mean and standard deviation of red, green and blue in ImageNet, on a scale from 0 to 1.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)

# Magic number, width, height and largest value, separated by white space and comments.
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_HEADER = re.compile(
    rb"(P[36])" + _GAP + rb"(\d{1,6})" + _GAP + rb"(\d{1,6})" + _GAP + rb"(\d{1,6})" + rb"(?=[\s#])"
)


def read_ppm(path: str | Path) -> Map:
    """Read an image, binary (P6) or text (P3), as [3][H][W] of floats from 0 to 1.

    Raises OSError if the file cannot be read, and ValueError, in one line, if it is malformed.
    """
    content = Path(path).read_bytes()
    header = _HEADER.match(content)
    if not header:
        raise ValueError(
            f"{path}: expected a PPM image (P6 or P3, width, height, largest value), "
            f"found {content[:12]!r}; convert the image to PPM"
        )
    width, height, largest = (int(header[i]) for i in (2, 3, 4))
    if not (1 <= largest <= 255 and width and height):
        raise ValueError(
            f"{path}: expected a size above 0 and a largest value from 1 to 255, found "
            f"{width} x {height} and {largest}; convert the image to 8 bits a colour"
        )
    values = _values(path, header[1], content[header.end() :])
    if len(values) != 3 * width * height or max(values) > largest:
        raise ValueError(
            f"{path}: expected {3 * width * height} numbers up to {largest} for {width} x {height} "
            f"pixels, found {len(values)} up to {max(values, default=0)}; save the image again"
        )
    pixels = [value / largest for value in values]  # [H * W * 3]
    return [_in_rows(pixels[channel::3], width) for channel in range(3)]


def _values(path: str | Path, magic: bytes, body: bytes) -> bytes | list[int]:
    """The colours after the header: bytes (after one white space) or decimal numbers."""
    if magic == b"P6":
        return body[1:]
    words = re.sub(rb"#[^\r\n]*", b"", body).split()
    for word in words:
        if not re.fullmatch(rb"\d{1,6}", word):
            raise ValueError(f"{path}: expected numbers, found {word[:20]!r}; save it again")
    return [int(word) for word in words]


def _in_rows(values: list[float], width: int) -> list[list[float]]:
    return [values[start : start + width] for start in range(0, len(values), width)]


def normalize(image: Map) -> Map:
    """Subtract ImageNet's mean, divide by its standard deviation: [3][H][W] -> [3][H][W]."""
    return [
        [[(value - mean) / deviation for value in row] for row in channel]
        for channel, mean, deviation in zip(image, MEAN, DEVIATION, strict=True)
    ]
