"""Pictures of the kinds that people have trouble with, each against values decoded by hand."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from tinygmf.engine.predictor import Predictor
from tinygmf.image import ImageError, as_rgb, load_image, preprocess
from tinygmf.model import create_model
from tinygmf.pixels import array_to_rgb, exif_orientation

# One scene: the left half red, the right half green, a blue band along the top
SCENE = np.zeros((12, 18, 3), np.uint8)
SCENE[:, :9, 0], SCENE[:, 9:, 1], SCENE[:3, :, 2] = 200, 200, 220
GREY = np.asarray(Image.fromarray(SCENE).convert("L"))  # 12 x 18
DEEP = GREY.astype(np.uint16) * 257
RGBA = np.dstack([SCENE, np.full(GREY.shape, 128, np.uint8)])


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def tiff(path: Path, strips: list[bytes], bits: list[int], photometric: int, **tags: list) -> Path:
    """An uncompressed TIFF, written from the specification (TIFF 6.0, section 2)."""
    height, width = GREY.shape
    order = tags.pop("order", "<")
    entries = {
        256: [width], 257: [height], 258: bits, 259: [1], 262: [photometric],
        273: [0] * len(strips), 277: [len(bits)], 278: [height], 279: list(map(len, strips)),
    } | {int(tag[1:]): values for tag, values in tags.items()}  # fmt: skip
    place = 8 + 2 + 12 * len(entries) + 4
    place += sum(4 * len(values) for values in entries.values() if len(values) > 1)
    for i, strip in enumerate(strips):
        entries[273][i] = place + sum(map(len, strips[:i]))
        assert strip
    head, tail, start = b"", b"", 8 + 2 + 12 * len(entries) + 4
    for tag, values in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            tail, packed = tail + packed, struct.pack(f"{order}I", start + len(tail))
        head += struct.pack(f"{order}HHI", tag, 4, len(values)) + packed
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    count = struct.pack(f"{order}IH", 8, len(entries))
    path.write_bytes(magic + count + head + bytes(4) + tail + b"".join(strips))
    return path


TIFFS = {  # strips, bits, photometric, other tags; the right pixels
    "grey of 16 bits": ([DEEP.tobytes()], [16], 1, {}, grey(GREY)),
    "highest byte first": ([DEEP.astype(">u2").tobytes()], [16], 1, {"order": ">"}, grey(GREY)),
    "white is zero": ([(65535 - DEEP).tobytes()], [16], 0, {}, grey(GREY)),
    "white is zero, bytes": ([(255 - GREY).tobytes()], [8], 0, {}, grey(GREY)),
    "white is zero, floats": (
        [(1 - GREY / 255).astype("<f4").tobytes()], [32], 0, {"t339": [3]}, grey(GREY)
    ),
    "signed 16 bits": ([(DEEP >> 1).astype("<i2").tobytes()], [16], 1, {"t339": [2]}, grey(GREY)),
    "signed bytes": ([(GREY >> 1).astype("i1").tobytes()], [8], 1, {"t339": [2]}, grey(
        np.rint((GREY >> 1) * (255 / 127)))),
    "32 bits": ([(DEEP.astype("<u4") * 65537).tobytes()], [32], 1, {"t339": [1]}, grey(GREY)),
    "floats": ([(GREY / 255).astype("<f4").tobytes()], [32], 1, {"t339": [3]}, grey(GREY)),
    "12 bits in 16, as declared": ([(DEEP >> 4).tobytes()], [16], 1, {}, grey(
        np.rint((DEEP >> 4) / 257))),
    "colour of 16 bits": ([(SCENE.astype("<u2") * 257).tobytes()], [16] * 3, 2, {}, SCENE),
    "alpha is dropped": ([RGBA.tobytes()], [8] * 4, 2, {"t338": [2]}, SCENE),
    "planes": (
        [SCENE[..., i].tobytes() for i in range(3)], [8] * 3, 2, {"t284": [2]}, SCENE
    ),
    "five bands": (
        [np.dstack([SCENE, SCENE[..., :2]]).tobytes()], [8] * 5, 2, {"t338": [0, 0]}, SCENE
    ),
    "turned": ([SCENE.tobytes()], [8] * 3, 2, {"t274": [6]}, np.rot90(SCENE, -1)),
    "turned, deep": ([DEEP.tobytes()], [16], 1, {"t274": [3]}, np.rot90(grey(GREY), 2)),
}  # fmt: skip


@pytest.mark.parametrize("kind", TIFFS)
def test_a_tiff_gives_the_pixels_that_its_tags_declare(tmp_path, kind):
    strips, bits, photometric, tags, expected = TIFFS[kind]
    path = tiff(tmp_path / "x.tif", strips, bits, photometric, **tags)
    np.testing.assert_array_equal(np.asarray(load_image(path)), expected)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(np.asarray(as_rgb(opened)), expected)


def test_a_tiff_that_lacks_strips_is_refused_and_not_black(tmp_path):
    planes = b"".join(SCENE[..., i].tobytes() for i in range(3))
    path = tiff(tmp_path / "x.tif", [planes], [8] * 3, 2, t284=[2])
    with pytest.raises(ImageError, match="expected 3 strips of pixels, found 1"):
        load_image(path)


@pytest.mark.parametrize("tag", [34665, 34853, 34675, 700, 33723, 305])
@pytest.mark.parametrize("value", [0, 7, 2**31])
def test_no_other_tag_of_a_tiff_decides_about_its_pixels(tmp_path, tag, value):
    path = tiff(tmp_path / "x.tif", [SCENE.tobytes()], [8] * 3, 2, **{f"t{tag}": [value]})
    np.testing.assert_array_equal(np.asarray(load_image(path)), SCENE)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path: Path, colour: int, bits: int, rows: np.ndarray, *chunks: bytes) -> Path:
    """A PNG with chunks before its pixels, written from the specification (RFC 2083)."""
    height, width = GREY.shape
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    pixels = chunk(b"IDAT", zlib.compress(lines))
    parts = chunk(b"IHDR", head), *chunks, pixels, chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def exif(orientation: int, order: str = "<", form: str = "H", rest: bytes = b"") -> bytes:
    """Camera data with two entries, of which the second is the orientation."""
    kind, start = {"B": 1, "H": 3, "I": 4}[form], {"<": b"II*\0", ">": b"MM\0*"}[order]
    other = struct.pack(f"{order}HHII", 0x010F, 2, 2**31, 2**31)  # damaged: beyond the file
    value = struct.pack(f"{order}{form}", orientation).ljust(4, b"\0")
    entry = struct.pack(f"{order}HHI", 0x0112, kind, 1) + value
    return start + struct.pack(f"{order}IH", 8, 2) + other + entry + rest


BAD_SUM = chunk(b"tEXt", b"Comment\0hello")[:-1] + b"\0"
PNGS = {
    "text that unpacks to megabytes": chunk(b"zTXt", b"C\0\0" + zlib.compress(bytes(3_000_000))),
    "text with a wrong sum": BAD_SUM,
    "a large profile": chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2_000_000))),
    "a broken profile": chunk(b"iCCP", b"profile\0\0not zlib"),
    "broken camera data": chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
    "no camera data": chunk(b"eXIf", b"nothing of the kind"),
    "empty text": chunk(b"iTXt", b""),
    "a wrong time": chunk(b"tIME", b"\0"),
    "wrong resolution": chunk(b"pHYs", b"\1"),
    "wrong gamma": chunk(b"gAMA", b""),
    "wrong primaries": chunk(b"cHRM", b"\1\2\3"),
}


@pytest.mark.parametrize("kind", PNGS)
def test_damage_beside_a_pngs_pixels_decides_nothing(tmp_path, kind):
    path = png(tmp_path / "x.png", 2, 8, SCENE, PNGS[kind])
    np.testing.assert_array_equal(np.asarray(load_image(path)), SCENE)
    turned = png(tmp_path / "y.png", 2, 8, SCENE, PNGS[kind], chunk(b"eXIf", exif(6)))
    if "camera" not in kind:
        np.testing.assert_array_equal(np.asarray(load_image(turned)), np.rot90(SCENE, -1))


def test_damage_to_a_pngs_pixels_is_still_refused(tmp_path):
    path = png(tmp_path / "x.png", 2, 8, SCENE, BAD_SUM)
    path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDAT\7", 1))
    with pytest.raises(ImageError):
        load_image(path)


@pytest.mark.parametrize(
    ("colour", "bits", "rows", "expected"),
    [
        (0, 16, DEEP.astype(">u2"), grey(GREY)),
        (4, 16, np.dstack([DEEP, DEEP * 0]).astype(">u2"), grey(GREY)),
        (2, 16, (SCENE.astype(np.uint16) * 257).astype(">u2"), SCENE),
        (6, 16, (RGBA.astype(np.uint16) * 257).astype(">u2"), SCENE),
        (6, 8, RGBA, SCENE),
    ],
)
def test_a_png_of_any_depth_gives_its_pixels_upright(tmp_path, colour, bits, rows, expected):
    path = png(tmp_path / "x.png", colour, bits, rows, chunk(b"eXIf", exif(8)))
    with Image.open(path) as opened:
        for found in (load_image(path), as_rgb(opened)):
            np.testing.assert_array_equal(np.asarray(found), np.rot90(expected))


def jpeg(*segments: bytes) -> tuple[bytes, np.ndarray]:
    """A JPEG with segments before its pixels, and the pixels without them."""
    file = io.BytesIO()
    Image.fromarray(SCENE).save(file, "JPEG", quality=95)
    data = file.getvalue()
    return data[:2] + b"".join(segments) + data[2:], np.asarray(Image.open(file).convert("RGB"))


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">HH", 0xFF00 + marker, len(data) + 2) + data


JPEGS = {
    "a short profile": segment(0xE2, b"ICC_PROFILE\0"),
    "a profile of many parts": segment(0xE2, b"ICC_PROFILE\0\xff\xff"),
    "wrong pictures of several": segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
    "Photoshop's data cut off": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\0\0\0\0\7\7"),
    "camera data cut off": segment(0xE1, b"Exif\0\0MM"),
    "other data": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x"),
    "a comment": segment(0xFE, bytes(range(256))),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_damage_beside_a_jpegs_pixels_decides_nothing(tmp_path, kind):
    for turn, name in ((b"", "x.jpg"), (segment(0xE1, b"Exif\0\0" + exif(3)), "y.jpg")):
        data, expected = jpeg(turn, JPEGS[kind])
        (tmp_path / name).write_bytes(data)
        found = np.asarray(load_image(tmp_path / name))
        np.testing.assert_array_equal(found, np.rot90(expected, 2) if turn else expected)


@pytest.mark.skipif(not features.check("avif"), reason="needs AVIF")
def test_damage_to_an_avifs_camera_data_decides_nothing(tmp_path):
    path = tmp_path / "x.avif"
    camera = Image.Exif()
    camera[0x010F] = "the maker"
    Image.fromarray(SCENE).save(path, quality=100, exif=camera)
    whole = np.asarray(load_image(path))
    data, start = path.read_bytes(), camera.tobytes().removeprefix(b"Exif\0\0")[:8]
    assert data.count(start) == 1
    path.write_bytes(data.replace(start, b"XX*\0\xff\xff\xff\xff"))
    np.testing.assert_array_equal(np.asarray(load_image(path)), whole)


TURNED = {  # by the definition of EXIF's tag: where row 0 and column 0 are
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
    9: lambda a: a,
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize(("order", "form"), [("<", "H"), (">", "H"), (">", "I"), ("<", "B")])
def test_a_picture_is_turned_by_its_own_tag_whatever_else_is_damaged(orientation, order, form):
    image = Image.fromarray(SCENE)
    image.info["exif"] = b"Exif\0\0" + exif(orientation, order, form, rest=b"\xff" * 3)
    np.testing.assert_array_equal(np.asarray(as_rgb(image)), TURNED[orientation](SCENE))
    assert np.asarray(image).shape == SCENE.shape  # the caller's own stays as it was


def test_camera_data_in_hexadecimals_turns_a_picture_too():
    image = Image.fromarray(SCENE)
    image.info["Raw profile type exif"] = (
        f"\nexif\n      64\n{(b'Exif' + bytes(2) + exif(6)).hex()}"
    )
    np.testing.assert_array_equal(np.asarray(as_rgb(image)), np.rot90(SCENE, -1))


@pytest.mark.parametrize("cut", range(0, 34))
def test_cut_off_camera_data_is_none(cut):
    assert exif_orientation(exif(6)[:cut]) in (1, 6)


ARRAYS = {
    "rows": (GREY, grey(GREY)),
    "one channel": (GREY[..., None], grey(GREY)),
    "one channel first": (GREY[None], grey(GREY)),
    "grey and alpha": (np.dstack([GREY, GREY * 0]), grey(GREY)),
    "colour": (SCENE, SCENE),
    "channels first": (SCENE.transpose(2, 0, 1), SCENE),
    "alpha": (RGBA, SCENE),
    "alpha, channels first": (RGBA.transpose(2, 0, 1), SCENE),
    "not contiguous": (np.repeat(SCENE, 2, axis=1)[:, ::2], SCENE),
    "16 bits": (DEEP, grey(GREY)),
    "16 bits, highest byte first": (DEEP.astype(">u2"), grey(GREY)),
    "colour of 16 bits": (SCENE.astype(np.uint16) * 257, SCENE),
    "bool": (GREY > 100, grey((GREY > 100) * 255)),
    "floats": (SCENE / 255, SCENE),
    "half floats": ((SCENE / 255).astype(np.float16), SCENE),
    "floats, channels first": ((SCENE / 255).transpose(2, 0, 1), SCENE),
    "floats to 255": (SCENE.astype(np.float32), SCENE),
    "wide integers": (SCENE.astype(np.int64), SCENE),
    "wide integers of 16 bits": (DEEP.astype(np.int32), grey(GREY)),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_gives_the_pixels_that_it_holds(kind):
    array, expected = ARRAYS[kind]
    np.testing.assert_array_equal(np.asarray(array_to_rgb(array)), expected)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 5, 6)), r"\(3, 4, 5, 6\) float64"),
        (np.zeros((9, 9, 7)), "1 to 4 channels"),
        (np.zeros((0, 9, 3), np.uint8), r"\(0, 9, 3\)"),
        (np.zeros((9, 9), complex), "complex128"),
        (np.array([["a"]]), "<U1"),
        (np.full((9, 9, 3), -0.5), "0 to 1 in floats, found -0.5: normalized pictures are"),
        (np.full((9, 9), -3), "found -3"),
    ],
)
def test_an_array_that_is_no_picture_is_told_in_one_line(array, message):
    with pytest.raises(ImageError, match=message) as caught:
        array_to_rgb(array)
    assert "\n" not in str(caught.value)


def test_a_file_an_image_and_an_array_of_one_picture_give_the_same_input(tmp_path):
    path = png(tmp_path / "x.png", 0, 16, DEEP.astype(">u2"))
    predict = Predictor(create_model("groupmixformer_nano", 2), 32, device="CPU", progress=False)
    expected = preprocess(Image.fromarray(grey(GREY)), 32)
    with Image.open(path) as opened:
        for picture in (path, str(path), opened, DEEP, opened.copy(), DEEP / 65535):
            np.testing.assert_array_equal(predict.read(picture), expected)
    ready = np.random.default_rng(0).standard_normal((3, 32, 32), np.float32)
    np.testing.assert_array_equal(predict.read(ready), ready)
    with pytest.raises(ImageError, match="normalized pictures are"):
        predict.read(ready[:, :31])


def test_what_people_take_for_pictures_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("tinygmf.image._formats", lambda: ["JPEG", "PNG", "TIFF"])  # no HEIF
    heic = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(500)
    for found, content in {
        "HEIC": heic,
        "a web page": b"<!DOCTYPE html><html>404</html>",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "PDF": b"%PDF-1.7\n",
        "a TIFF of a kind": tiff(tmp_path / "x", [bytes(1728)], [64], 1, t339=[3]).read_bytes(),
    }.items():
        (tmp_path / "x.jpg").write_bytes(content)
        with pytest.raises(ImageError, match=f"x.jpg: .*{found}"):
            load_image(tmp_path / "x.jpg")
