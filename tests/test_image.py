"""What image.py promises: any picture becomes the published network's input, or one clear line."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from process import call
from strategies import noise

from tinygmf.image import (
    MAX_RESIZED_PIXELS,
    MEAN,
    STD,
    ImageError,
    imagenet_labels,
    load_image,
    picture_suffixes,
    preprocess,
    resized_and_corner,
)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(noise(seed, height, width))


def published(image: Image.Image, size: int) -> np.ndarray:
    """torchvision's Resize, CenterCrop, ToTensor and Normalize, retold from their definitions."""
    width, height = image.size
    short, long = sorted((width, height))
    new_short = int((256 / 224) * size)
    new_long = int(new_short * long / short)
    new = (new_short, new_long) if width <= height else (new_long, new_short)
    pixels = np.asarray(image.resize(new, Image.Resampling.BICUBIC)).astype(np.float32)
    top = round((new[1] - size) / 2.0)
    left = round((new[0] - size) / 2.0)
    pixels = pixels[top : top + size, left : left + size].transpose(2, 0, 1) / np.float32(255)
    return (pixels - MEAN.reshape(3, 1, 1)) / STD.reshape(3, 1, 1)


def save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([32, 64, 224, 225]))
@example(1, 508, 225)
def test_preprocess_equals_the_published_evaluation(width, height, size):
    image = picture(width, height)
    result = preprocess(image, size)
    assert result.shape == (3, size, size) and result.dtype == np.float32
    new_width, new_height = resized_and_corner(width, height, size)[0]
    # Of a longer strip only the crop is resized, and Pillow then rounds its passes otherwise
    level = 0 if new_width * new_height <= MAX_RESIZED_PIXELS else 1.01 / 255 / STD.min()
    np.testing.assert_allclose(result, published(image, size), rtol=0, atol=level)


def test_a_white_image_is_normalized_to_known_numbers():
    result = preprocess(Image.new("RGB", (300, 200), "white"), 64)
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(result[:, 0, 0], expected, rtol=1e-6)
    assert np.ptp(result, axis=(1, 2)).max() == 0


@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1), (20_000, 3)])
def test_a_long_strip_is_never_resized_as_a_whole(shape, monkeypatch):
    resize, sizes = Image.Image.resize, []

    def watched(image: Image.Image, size: tuple[int, int], *rest, **options) -> Image.Image:
        sizes.append(size)
        return resize(image, size, *rest, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    result = preprocess(Image.new("RGB", shape, (255, 0, 0)), 224)
    assert result.shape == (3, 224, 224) and np.ptp(result, axis=(1, 2)).max() == 0
    assert sizes == [(224, 224)]  # the shorter side at 256 would make 26 million pixels or more


def test_the_crop_of_a_strip_agrees_with_the_plain_path(monkeypatch):
    ramp = np.linspace(0, 255, 3000).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp[None, :, None], (20, 3000, 3)).copy())
    plain = preprocess(image, 224)
    monkeypatch.setattr("tinygmf.image.MAX_RESIZED_PIXELS", 0)
    np.testing.assert_allclose(preprocess(image, 224), plain, atol=1.01 / 255 / STD.min())


HELD = {
    "png": ["RGB", "RGBA", "L", "LA", "P", "1"],
    "webp": ["RGB", "RGBA", "L"],
    "jpg": ["RGB", "L", "CMYK"],
    "gif": ["RGB", "L", "P", "1"],
    "bmp": ["RGB", "L", "P", "1"],
    "tiff": ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"],
}


@pytest.mark.parametrize("suffix, mode", [(s, mode) for s in HELD for mode in HELD[s]])
def test_every_ordinary_mode_is_read_as_convert_reads_it(tmp_path, suffix, mode):
    path = save(picture(9, 7).convert(mode), tmp_path / f"x.{suffix}")
    result = load_image(path)
    assert result.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(result), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_grey_of_16_bits_is_scaled_not_clipped(tmp_path, suffix):
    grey = np.array([[0, 257 * 100, 65535]], np.uint16)
    pixels = np.asarray(load_image(save(Image.fromarray(grey), tmp_path / f"x.{suffix}")))
    assert pixels[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0, 1e6])
def test_grey_of_floats_is_scaled_to_its_own_white(tmp_path, white):
    grey = np.array([[-white, 0, white * 0.4, white]], np.float32)
    pixels = np.asarray(load_image(save(Image.fromarray(grey), tmp_path / "x.tiff")))
    assert pixels[0, :, 0].tolist() == [0, 0, 102, 255]


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held on its side
    path = save(picture(8, 4), tmp_path / "x.png", exif=exif)
    upright = Image.open(path).convert("RGB").transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(upright))


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = save(frames[0], tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert load_image(path).getpixel((0, 0)) == (255, 0, 0)


def bomb(path: Path) -> None:
    """A BMP header that promises 60,000 x 60,000 pixels."""
    header = bytearray(save(Image.new("RGB", (1, 1)), path).read_bytes())
    header[18:26] = (60_000).to_bytes(4, "little") * 2
    path.write_bytes(header)


def half(path: Path) -> None:
    whole = save(picture(64, 64), path, format="PNG").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


UNREADABLE = {
    "no such file": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "empty file": lambda path: path.touch(),
    "something else": lambda path: path.write_text("not a picture"),
    "cannot be read": half,
    "pixels": bomb,
}


@pytest.mark.parametrize("found", UNREADABLE)
def test_a_file_that_is_no_picture_is_told_in_one_line(tmp_path, found):
    path = tmp_path / "x.bmp"
    UNREADABLE[found](path)
    with pytest.raises(ImageError) as caught:
        load_image(path)
    message = str(caught.value)
    assert str(path) in message and found in message.lower() and "\n" not in message


def test_a_format_that_starts_programs_is_not_opened(tmp_path, monkeypatch):
    """Pillow passes PostScript to Ghostscript: a picture must not be able to choose that."""
    monkeypatch.setattr(subprocess, "Popen", None)
    path = tmp_path / "x.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="found something else"):
        load_image(path)


@pytest.mark.parametrize("size", [(0, 0), (0, 9), (9, 0)])
def test_a_picture_without_pixels_is_told_in_one_line(size):
    with pytest.raises(ImageError, match=f"found {size[0]}x{size[1]} pixels"):
        preprocess(Image.new("RGB", size))


def test_a_small_file_of_many_pixels_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = save(Image.new("1", (20_000, 20_000)), tmp_path / "x.png")
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # what unpacks: not to be called
    with pytest.raises(ImageError, match="at most 89,478,485 pixels, found more"):
        load_image(path)


def test_a_name_with_a_line_feed_is_told_in_one_line(tmp_path):
    with pytest.raises(ImageError) as caught:
        load_image(tmp_path / "a\n\x1b[31mb")
    assert str(caught.value).isprintable()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_at_once(tmp_path):
    """In its own process, so that only that would wait forever."""
    os.mkfifo(tmp_path / "pipe")
    assert "ImageError" in call(load_image_of, tmp_path / "pipe").stderr


def load_image_of(name: str) -> None:
    load_image(name)


def test_the_labels_are_in_the_order_of_imagenet():
    labels = imagenet_labels()
    assert len(labels) == len(set(labels)) == 1000
    known = {0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby cat"}
    known |= {388: "giant panda", 817: "sports car", 999: "toilet tissue"}
    assert {index: labels[index] for index in known} == known


def test_a_photograph_in_heic_opens_upright_where_pillow_heif_is_installed(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    path, size = tmp_path / "IMG_1.HEIC", (64, 48)
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    heif.from_pillow(picture).save(path, quality=90, exif=exif.tobytes())
    found = load_image(path)
    assert found.size == (48, 64) and ".heic" in picture_suffixes()
    expected = picture.transpose(Image.Transpose.ROTATE_270)
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() < 16
