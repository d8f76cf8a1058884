"""Any picture to the network's input, as in the published evaluation; ImageNet's class names.

A file, a Pillow image and an array are treated alike: upright 8-bit RGB (`as_rgb`), then
`preprocess`. Of what a file holds besides its pixels (text, colour profile, EXIF) only the
orientation is used, read from its own tag.
"""

import importlib.resources
import importlib.util
import io
import os
import re
import stat
import struct
import warnings
import zlib
from functools import cache
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from tinygmf.config import IMAGENET_MEAN, IMAGENET_STD, PUBLISHED_SIZE, Settings
from tinygmf.pixels import ImageError, array_to_rgb, image_to_rgb

Picture = str | os.PathLike[str] | Image.Image | np.ndarray

MEAN, STD = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
PUBLISHED = Settings()
FORMATS = [
    *("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"),
    "HEIF",  # where pillow-heif is installed
]
# Pillow knows others, and passes some to external programs: PostScript to Ghostscript.
MAX_PIXELS = 89_478_485  # where Pillow warns of a decompression bomb: 0.4 GB in memory
MAX_RESIZED_PIXELS = 2**24  # what the resize may allocate: 64 MB
MAX_MENDED = 2**28  # bytes of a file that is decoded again without its metadata

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
FOUND = (  # what people take for pictures: how it begins, what it is
    (rb"....ftyp(hei|hev|mif1|msf1)", "HEIC (pip install pillow-heif makes it readable)"),
    (rb"\s*<(!doctype html|html)", "a web page"),
    (rb"\s*(<\?xml.*)?<svg", "SVG, a drawing"),
    (rb"%PDF-", "a PDF document"),
    (rb"version https://git-lfs", "a Git LFS pointer, which stands for the picture"),
    (rb"II\*\0|MM\0\*", "a TIFF of a kind that Pillow cannot read"),
)


def as_rgb(picture: Picture) -> Image.Image:
    """Return a file, a Pillow image or an array as RGB, turned upright: see `pixels`.

    Raises ImageError, in one line, for what is not a picture.
    """
    if isinstance(picture, np.ndarray):
        return array_to_rgb(picture)
    if not isinstance(picture, Image.Image):
        return load_image(picture)
    try:
        return image_to_rgb(picture)
    except Exception as error:
        raise ImageError(_told(error)) from None


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read a picture (JPEG, PNG, WebP and others of `FORMATS`) as RGB, turned upright.

    The conversion is Pillow's `convert("RGB")`, as in the published evaluation: alpha is dropped,
    an animation gives its first frame. Grey of 16 bits or of floats is scaled to 8 bits first.
    Raises ImageError for a file that is missing, not a picture, damaged or too large.
    """
    name = os.fspath(path)
    try:
        found = os.stat(name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(
            f"{name}: expected a picture file, found {reason}: check the name"
        ) from None
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would block forever
        raise ImageError(f"{name}: expected a picture, found a folder or device: name a file")
    if found.st_size == 0:
        raise ImageError(f"{name}: expected a picture, found an empty file: download it again")
    try:
        with open(name, "rb") as file:
            return decode(file)
    except (ImageError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise ImageError(f"{name}: {reason}")


def decode(file: BinaryIO) -> Image.Image:
    """Do what `load_image` does, for an open file; its ImageError names no file."""
    try:
        return _decode(file)
    except UnidentifiedImageError:
        file.seek(0)
        start = file.read(256)
        found = (what for begins, what in FOUND if re.match(begins, start, re.S | re.I))
        reason = (
            "expected a picture such as JPEG, PNG or WebP, found "
            f"{next(found, 'something else')}: convert it"
        )
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = _told(error)
    raise ImageError(reason)


def _told(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return f"expected at most {MAX_PIXELS:,} pixels, found more: make the picture smaller"
    line = (str(error) or type(error).__name__).splitlines()[0]
    return f"expected a whole picture, found one that cannot be read ({line}): download it again"


def _decode(file: BinaryIO) -> Image.Image:
    """Decode the file; if that fails, without its metadata, which may be what is damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the size is checked here; odd metadata is harmless
        try:
            return _open(file)
        except Image.DecompressionBombError:
            raise
        except Exception:
            file.seek(0)
            data = file.read(MAX_MENDED + 1)
            plain, exif = without_metadata(data)
            if plain == data or len(data) > MAX_MENDED:
                raise
            return _open(io.BytesIO(plain), exif)


def _open(file: BinaryIO, exif: bytes | None = None) -> Image.Image:
    with Image.open(file, formats=_formats()) as image:
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        if image.format == "TIFF":
            _check_strips(image)
            # Pillow would turn it here, by whatever it finds anywhere in EXIF
            image.load_end = lambda: None  # type: ignore
        return image_to_rgb(image, exif)


@cache
def _formats() -> list[str]:
    """Return those of `FORMATS` that this Pillow was built with."""
    Image.init()
    if importlib.util.find_spec("pillow_heif") is not None:
        importlib.import_module("pillow_heif").register_heif_opener()
    return [name for name in FORMATS if name in Image.OPEN]


@cache
def picture_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the formats that can be opened here."""
    known = {"MPO", *_formats()}  # several JPEG in one file: Pillow's JPEG reader opens it
    return frozenset(end for end, name in Image.registered_extensions().items() if name in known)


def looks_like_picture(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins like a picture, whatever its name. Raises nothing."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            return begins_as_picture(file)
    except (OSError, ValueError):
        return False


def begins_as_picture(file: BinaryIO) -> bool:
    """Whether an open file begins like a picture; reading starts at its beginning."""
    if file.read(16).startswith((PNG, JPEG)):
        return True
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(file, formats=_formats())
        return True
    except Exception:  # Pillow's readers raise nearly anything
        return False


def _check_strips(image: Image.Image) -> None:
    """Raise ValueError for a TIFF that lacks strips or tiles: Pillow would leave them black."""
    tags = image.tag_v2  # type: ignore
    width, height = tags[256], tags[257]
    offsets = tags.get(273, tags.get(324))
    if offsets is None:
        return
    across, down = (width, tags.get(278, height)) if 273 in tags else (tags[322], tags[323])
    planes = tags.get(277, 1) if tags.get(284) == 2 else 1
    needed = planes * -(-width // max(across, 1)) * -(-height // max(down, 1))
    found = len(offsets) if isinstance(offsets, tuple) else 1
    if found < needed:
        raise ValueError(f"expected {needed} strips of pixels, found {found}")


def without_metadata(data: bytes) -> tuple[bytes, bytes | None]:
    """The bytes of a PNG, JPEG or AVIF file without text, profiles and EXIF, and the EXIF; those of
    any other file unchanged."""
    try:
        if data.startswith(PNG):
            return _plain_png(data)
        if data.startswith(JPEG):
            return _plain_jpeg(data)
    except struct.error:  # truncated
        return data, None
    if data[4:8] == b"ftyp":  # rename the EXIF entry to one that readers ignore
        return re.sub(rb"(infe.{8})Exif", rb"\1none", data, flags=re.S), None
    return data, None


def _plain_png(data: bytes) -> tuple[bytes, bytes | None]:
    parts, exif, place = [PNG], None, len(PNG)
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunk = data[place : place + 12 + length]  # length, kind, content, checksum
        kind, content = chunk[4:8], chunk[8:-4]
        if kind[:1].isupper():  # critical: without it there is no picture
            parts.append(chunk)
        elif kind == b"eXIf" and chunk[-4:] == struct.pack(">I", zlib.crc32(kind + content)):
            exif = content
        place += 12 + length
    return b"".join(parts), exif


def _plain_jpeg(data: bytes) -> tuple[bytes, bytes | None]:
    parts, exif, place = [data[:2]], None, 2
    while place < len(data) and data[place : place + 2] != b"\xff\xda":  # the pixels
        marker, length = struct.unpack_from(">HH", data, place)
        segment = data[place : place + 2 + length]
        if segment[4:10] == b"Exif\0\0" and exif is None:
            exif = segment[4:]
        # JFIF and Adobe's segment define the colours; the others, and comments, may go
        if marker in (0xFFE0, 0xFFEE) or not (0xFFE0 < marker < 0xFFF0 or marker == 0xFFFE):
            parts.append(segment)
        place += 2 + length
    return b"".join(parts) + data[place:], exif


def preprocess(
    picture: Picture, size: int = PUBLISHED_SIZE, settings: Settings = PUBLISHED, channels: int = 3
) -> np.ndarray:
    """Return a picture as the network's input: float32, (channels, size, size); 1 channel is grey.

    The published evaluation: the shorter side to 256/224 of `size` (bicubic), the centre cropped,
    divided by 255, ImageNet's mean subtracted, divided by its standard deviation. Equals
    torchvision's Resize, CenterCrop, ToTensor and Normalize, but within one level of 255 where the
    whole would have over MAX_RESIZED_PIXELS, as a very long strip has; `settings` can change crop,
    mean and deviation. Raises ValueError for a size below 1 and for channels other than 1 or 3,
    ImageError for what is not a picture.
    """
    if channels not in (1, 3):
        raise ValueError(
            f"pictures: expected a network with 3 channels, or 1 for grey, found {channels}: "
            f"give it normalized arrays ({channels}, {size}, {size})"
        )
    crop = resize_and_crop(as_rgb(picture), size, settings)
    return normalize(crop.convert("L") if channels == 1 else crop, settings)


def normalize(image: Image.Image, settings: Settings = PUBLISHED) -> np.ndarray:
    """Return an RGB picture of the right size as the network's input: float32, (3, H, W); a grey
    one (mode L) in one channel, by the average of the three means and of the three deviations."""
    mean, std = np.array(settings.mean, np.float32), np.array(settings.std, np.float32)
    pixels, levels = np.asarray(image), np.arange(256, dtype=np.float32)[:, None] / 255
    if image.mode == "L":
        pixels, mean, std = pixels[..., None], mean.mean(), std.mean()
    known = (levels - mean) / std  # each level's value in each channel: a fifth of the work
    out = np.empty((pixels.shape[2], *pixels.shape[:2]), np.float32)
    for channel, values in enumerate(known.T):
        np.take(values, pixels[..., channel], out=out[channel], mode="clip")
    return out


def resize_and_crop(image: Image.Image, size: int, settings: Settings = PUBLISHED) -> Image.Image:
    """Return the picture's centre, `size` x `size` pixels, as the published evaluation cuts it."""
    width, height = image.size
    (new_width, new_height), (left, top) = resized_and_corner(width, height, size, settings)
    right, bottom = left + size, top + size
    if new_width * new_height <= MAX_RESIZED_PIXELS:
        resized = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
        return resized.crop((left, top, right, bottom))
    # A very long strip: compute only the crop. Pillow then rounds its two passes in another order.
    x, y = width / new_width, height / new_height
    box = (left * x, top * y, min(right * x, width), min(bottom * y, height))
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def resized_and_corner(
    width: int, height: int, size: int, settings: Settings = PUBLISHED
) -> tuple[tuple[int, int], tuple[int, int]]:
    """How `resize_and_crop` cuts a picture of this size: width and height after resizing, and left
    and top of the central square. Raises ValueError or ImageError if it cannot."""
    if size < 1:
        raise ValueError(f"expected an image size of at least 1, found {size}")
    if not width or not height:
        raise ImageError(f"expected a picture, found {width}x{height} pixels")
    short = int(1 / settings.crop * size)
    if width <= height:
        new_width, new_height = short, int(short * height / width)
    else:
        new_width, new_height = int(short * width / height), short
    return (new_width, new_height), (round((new_width - size) / 2), round((new_height - size) / 2))


def imagenet_labels() -> list[str]:
    """Return ImageNet-1K's 1,000 class names in class order, each WordNet's first name for it."""
    file = importlib.resources.files("tinygmf").joinpath("assets/imagenet_labels.txt")
    return file.read_text(encoding="utf-8").splitlines()


def usual_names(num_classes: int) -> list[str]:
    """Names for the classes of a network that has none: ImageNet's for 1,000, else numbers."""
    return imagenet_labels() if num_classes == 1000 else [str(i) for i in range(num_classes)]
