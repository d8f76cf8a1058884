"""Picture files to tensors, as the published evaluation does it, and ImageNet's class names."""

import contextlib
import importlib.resources
import os
import stat
import warnings
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tinygmf.config import IMAGENET_MEAN, IMAGENET_STD
from tinygmf.files import one_line

MEAN, STD = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
FORMATS = ["AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"]
# Pillow knows others, and hands some to programs: PostScript to Ghostscript.
MAX_PIXELS = 89_478_485  # where Pillow too warns of a bomb: 0.4 GB in memory
MAX_RESIZED_PIXELS = 2**24  # what the resize may allocate: 64 MB


class ImageError(ValueError):
    """A file that is not a readable picture; the message is one line that says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def load_image(path: str | Path) -> Image.Image:
    """Read a picture (JPEG, PNG, WebP and others of `FORMATS`) as RGB, turned upright.

    The conversion is Pillow's `convert("RGB")`, as in the published evaluation: alpha is dropped,
    an animation gives its first frame. Grey of 16 bits or of floats is scaled to 8 bits first.
    Raises ImageError for a file that is missing, not a picture, damaged or too large.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(
            f"{path}: expected a picture file, found {reason}: check the name"
        ) from None
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
        raise ImageError(f"{path}: expected a picture, found a folder or device: name a file")
    if found.st_size == 0:
        raise ImageError(f"{path}: expected a picture, found an empty file: fetch it again")
    try:
        with open(path, "rb") as file:
            return decode(file)
    except (ImageError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise ImageError(f"{path}: {reason}")


def decode(file: BinaryIO) -> Image.Image:
    """Do what `load_image` does, of an open file; ImageError, without a name, for no picture."""
    try:
        return _decode(file)
    except UnidentifiedImageError:
        reason = "expected a picture such as JPEG, PNG or WebP, found something else: convert it"
    except (Image.DecompressionBombError, MemoryError):
        reason = f"expected at most {MAX_PIXELS:,} pixels, found more: make the picture smaller"
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        line = (str(error) or type(error).__name__).splitlines()[0]
        reason = f"expected a whole picture, found one that cannot be read ({line}): fetch it again"
    raise ImageError(reason)


def _decode(file: BinaryIO) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the size is checked here, and odd metadata does no harm
        with Image.open(file, formats=_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            with contextlib.suppress(Exception):  # a picture with broken EXIF data is still one
                return _to_rgb(ImageOps.exif_transpose(image))
            return _to_rgb(image)


@cache
def _formats() -> list[str]:
    """Return those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB; deep grey is scaled, where `convert` would clip it to white."""
    if image.mode.startswith("I"):  # I is 32 bits wide, but nearly always holds 16-bit grey
        image = _scale_grey(image, (65535.0,))
    elif image.mode == "F":  # no file says what its white is
        image = _scale_grey(image, (1.0, 255.0, 65535.0))
    return image.convert("RGB")


def _scale_grey(image: Image.Image, whites: tuple[float, ...]) -> Image.Image:
    """Return 8-bit grey: white is the first of `whites` that no pixel passes, else the greatest."""
    grey = np.array(image, np.float32)  # one copy, changed in place: it may be large
    np.maximum(np.nan_to_num(grey, copy=False), 0, out=grey)
    greatest = float(grey.max())
    white = next((white for white in whites if greatest <= white), greatest)
    np.rint(np.multiply(grey, 255 / white, out=grey), out=grey)
    return Image.fromarray(grey.astype(np.uint8))


def preprocess(image: Image.Image, size: int = 224) -> np.ndarray:
    """Return an RGB picture as the network's input: float32, (3, size, size).

    The published evaluation: the shorter side to 256/224 of `size` (bicubic), the centre cropped,
    divided by 255, ImageNet's mean subtracted, divided by its standard deviation. Equals
    torchvision's Resize, CenterCrop, ToTensor and Normalize. Raises ValueError for a size below 1.
    """
    return normalize(resize_and_crop(image.convert("RGB"), size))


def normalize(image: Image.Image) -> np.ndarray:
    """Return an RGB picture of the right size as the network's input: float32, (3, H, W)."""
    pixels = np.asarray(image, np.float32) / 255
    return np.ascontiguousarray(((pixels - MEAN) / STD).transpose(2, 0, 1))


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Return the picture's centre, `size` x `size` pixels, as the published evaluation cuts it."""
    if size < 1:
        raise ValueError(f"expected an image size of at least 1, found {size}")
    width, height = image.size
    if not width or not height:
        raise ImageError(f"expected a picture, found one of {width} x {height} pixels")
    short = int(256 / 224 * size)
    if width <= height:
        new_width, new_height = short, int(short * height / width)
    else:
        new_width, new_height = int(short * width / height), short
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    right, bottom = left + size, top + size
    if new_width * new_height <= MAX_RESIZED_PIXELS:
        resized = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
        return resized.crop((left, top, right, bottom))
    # A very long strip: compute the crop alone. Pillow then rounds its two passes in another order.
    x, y = width / new_width, height / new_height
    box = (left * x, top * y, min(right * x, width), min(bottom * y, height))
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def imagenet_labels() -> list[str]:
    """Return ImageNet-1K's 1,000 class names in class order, each WordNet's first name for it."""
    file = importlib.resources.files("tinygmf").joinpath("assets/imagenet_labels.txt")
    return file.read_text(encoding="utf-8").splitlines()
