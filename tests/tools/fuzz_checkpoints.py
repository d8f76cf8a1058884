"""Broken and hostile files by the million, for the readers of weights, pictures and data sets.

    nice python tests/tools/fuzz_checkpoints.py --seconds 600

Whole files are changed at random: bytes, numbers, blocks, ends; two files are spliced. Around the
parts that carry meaning (a .pth's pickle, instruction by instruction; a .safetensors' JSON) a
correct container is built, so that changes are not stopped at the first checksum. Whatever is read,
the promise is the same: a result of bounded size or one error of one line, within a second, within
bounded memory, and nothing is imported, opened or started. An input that breaks it is kept.

Everything runs in one process, from memory; data sets, which are folders, from a temporary folder.
The same seed tries the same inputs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import mmap
import os
import pickletools
import random
import signal
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from folder_inputs import ERRORS, READ, FolderInputs
from pickles import REGISTRY, Call, module, parameter, torch_save
from PIL import Image

from tinygmf.image import ImageError, decode, preprocess
from tinygmf.weights.entries import find_network
from tinygmf.weights.pth import write_pth
from tinygmf.weights.reading import CheckpointError, parse_checkpoint
from tinygmf.weights.safetensors import write_safetensors

SECONDS = 1.0  # of the processor's time, for one weight file
PICTURE_SECONDS = 4.0  # for a picture: up to 89 million pixels may be unpacked
HANGS = 60.0  # seconds of waiting, for a pipe say, after which SIGALRM ends it
MEMORY = 1 << 30  # bytes beyond what the process has at the start
FORBIDDEN = (
    *("import", "open", "exec", "compile", "pickle.find_class", "marshal.loads"),
    *("os.", "subprocess.", "socket.", "ctypes.dlopen", "shutil.", "tempfile."),
)
NUMBERS = (0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 2**15, 2**16, 2**31, 2**32, 2**63, 2**64)
TENSORS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bias": np.array([-0.0, np.inf, np.nan], np.float32),
    "half": np.arange(4, dtype=np.float16),
    "num_batches_tracked": np.array(7),
}


ROOT = np.arange(6, dtype=np.float32)
NETWORK = {
    **{f"patch_embed_layers.{i}.norm.weight": np.ones(10, np.float32) for i in range(4)},
    **{
        f"groupmixformer_backbone.{i}.gma_stage.0.mlp.fc1.weight": np.ones((20, 10), np.float32)
        for i in range(4)
    },
    "conv_stem.proj1.weight": np.ones((5, 3, 3, 3), np.float32),
    "norm4.weight": np.ones(10, np.float32),
    "head.weight": np.ones((2, 10), np.float32),
}


def file_of(write: Callable, tensors: dict[str, np.ndarray]) -> bytes:
    content = io.BytesIO()
    write(tensors, content, {"tinygmf": "{}"})
    return content.getvalue()


# Changes


def change_bytes(r: random.Random, data: bytes) -> bytes:
    """One to four changes of bytes, numbers, blocks or ends."""
    result = bytearray(data)
    for _ in range(r.choice((1, 1, 1, 2, 4))):
        at, kind = r.randrange(len(result) + 1), r.randrange(7)
        if kind == 0 and at < len(result):
            result[at] ^= 1 << r.randrange(8)
        elif kind == 1 and at < len(result):
            result[at] = r.choice((0, 1, 127, 128, 255, r.randrange(256)))
        elif kind == 2:
            width = r.choice((1, 2, 4, 8))
            number = r.choice(NUMBERS) + r.choice((-1, 0, 0, 1))
            result[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, "little")
        elif kind == 3:
            del result[at : at + r.choice((1, 2, 4, 8, 64))]
        elif kind == 4:
            block = result[at : at + r.choice((1, 4, 16, 64))]
            result[at:at] = block * r.choice((1, 1, 2, 50))
        elif kind == 5:
            result[at:at] = r.randbytes(r.choice((1, 2, 4, 8)))
        elif r.random() < 0.2:
            del result[at:]
    return bytes(result)


def splice(r: random.Random, first: bytes, second: bytes) -> bytes:
    return first[: r.randrange(len(first) + 1)] + second[r.randrange(len(second) + 1) :]


def zip_of(records: Iterable[tuple[str, bytes]]) -> bytes:
    """A plain zip archive, without the care (and the time) of the standard library's writer."""
    body, directory, count = bytearray(), bytearray(), 0
    for name, data in records:
        common = struct.pack(
            *("<HHHHHIIIHH", 20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data)),
            *(len(name), 0),
        )
        directory += b"PK\1\2\x14\0" + common + struct.pack("<HHHII", 0, 0, 0, 0, len(body))
        directory += name.encode()
        body += b"PK\3\4" + common + name.encode() + data
        count += 1
    sizes = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(body), 0)
    return bytes(body + directory + b"PK\5\6" + sizes)


def states() -> list[dict]:
    """Training states like people's: networks, averages, objects of any class."""
    prefixed = {f"module.{key}": array for key, array in NETWORK.items()}
    objects = {
        "set": {1},
        "bytes": b"x" * 300,
        "array": bytearray(b"y"),
        "path": Path("a"),
        "z": 1j,
    }
    return [
        {"model": NETWORK, "model_ema": {"n": np.array(3), **prefixed}, "c": Counter("ab")},
        {"net": module(NETWORK), "p": parameter(ROOT), "at": Call(REGISTRY.kind("a.B"), (1,))},
        {"state_dict": {**prefixed, "neck.w": ROOT}, **objects},
    ]


def pth_files() -> list[bytes]:
    """Every way to write them: both formats of torch.save's, pickles of every protocol."""
    files = [file_of(write_pth, TENSORS), file_of(write_pth, {"a": TENSORS["weight"]})]
    with tempfile.TemporaryDirectory() as folder:
        for state in states():
            for protocol in (2, 3, 4, 5):
                legacy = protocol in (3, 5)
                path = torch_save(state, Path(folder, "x"), protocol, legacy)
                files.append(path.read_bytes())
                files.append(torch_save(state, path, protocol).read_bytes())
    return files


class PthInputs:
    """.pth files: changed as a whole, or with a changed pickle in a correct archive."""

    def __init__(self) -> None:
        self.files = pth_files()
        archives = [content for content in self.files if content.startswith(b"PK")]
        self.records = [_records(content) for content in archives]
        self.programs = [records.pop("data.pkl") for records in self.records]
        self.instructions = [_instructions(program) for program in self.programs]
        self.pool = sorted({code for program in self.instructions for code in program})
        self.pool += [b"(", b"t", b")", b"]", b"}", b"a", b"e", b"u", b"s", b"R", b"Q", b"b", b"N"]
        self.pool += [b"h\0", b"h\1", b"q\0", b"\x85", b"\x86", b"\x87", b"\x88", b"K\xff", b"."]
        self.pool += [
            b"0",
            b"1",
            b"2",
            b"\x81",
            b"\x92",
            b"\x93",
            b"\x94",
            b"\x8f",
            b"\x90",
            b"\x91",
        ]
        self.pool += [
            b"\x8b\4\0\0\0abcd",
            b"U\1a",
            b"C\1a",
            b"\x8c\1a",
            b"\x80\4",
            b"cos\nsystem\n",
        ]

    def __call__(self, r: random.Random) -> bytes:
        kind = r.randrange(10)
        if kind < 2:
            return change_bytes(r, r.choice(self.files))
        if kind == 2:
            return splice(r, r.choice(self.files), r.choice(self.files))
        which = r.randrange(len(self.programs))
        if kind == 3:
            program = change_bytes(r, self.programs[which])
        else:
            program = b"".join(self._change(r, list(self.instructions[which])))
        records = [(f"a/{name}", data) for name, data in self.records[which].items()]
        if kind == 8:
            at = r.randrange(len(records))
            records[at] = records[at][0], change_bytes(r, records[at][1])
        archive = zip_of([("a/data.pkl", program), *records])
        return change_bytes(r, archive) if kind == 9 else archive

    def _change(self, r: random.Random, codes: list[bytes]) -> list[bytes]:
        """Instructions replaced, inserted, left out, repeated or moved."""
        for _ in range(r.choice((1, 1, 2, 3, 8))):
            at, kind = r.randrange(len(codes) + 1), r.randrange(6)
            if kind < 2:
                codes[at : at + 1] = [r.choice(self.pool)]
            elif kind == 2:
                codes.insert(at, r.choice(self.pool))
            elif kind == 3:
                del codes[at : at + r.choice((1, 1, 2, 5))]
            elif kind == 4:
                codes[at:at] = codes[at : at + r.choice((1, 3, 10))] * r.choice((1, 2, 20))
            elif at < len(codes):  # another number in an instruction with one
                code = codes[at]
                number = r.choice(NUMBERS) + r.choice((-1, 0, 1))
                if code[:1] == b"J":
                    codes[at] = b"\x8a\x09" + number.to_bytes(9, "little", signed=True)
        return codes


def _records(archive: bytes) -> dict[str, bytes]:
    """The content of every record, by its name without the archive's folder."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return {name.partition("/")[2]: file.read(name) for name in file.namelist()}


def _instructions(program: bytes) -> list[bytes]:
    places = [place for _, _, place in pickletools.genops(program)] + [len(program)]
    return [program[a:b] for a, b in pairwise(places)]


class SafetensorsInputs:
    """.safetensors files: changed as a whole, or with a changed header of the right length."""

    def __init__(self) -> None:
        self.files = [
            file_of(write_safetensors, TENSORS),
            file_of(write_safetensors, {"a": TENSORS["weight"]}),
        ]
        self.pieces = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"null", b"true", b"-1", b"1e9"]
        self.pieces += [b'"dtype"', b'"F32"', b'"BF16"', b'"shape"', b'"data_offsets"', b"[0,24]"]
        self.pieces += [b'"a"', b"\\ud800", b"\xff", b"\0", b"9" * 30, b"NaN", b'"__metadata__"']

    def __call__(self, r: random.Random) -> bytes:
        whole = r.choice(self.files)
        kind = r.randrange(10)
        if kind < 3:
            return change_bytes(r, whole)
        if kind == 3:
            return splice(r, whole, r.choice(self.files))
        length = int.from_bytes(whole[:8], "little")
        header, data = whole[8 : 8 + length], whole[8 + length :]
        if kind < 7:
            changed = self._change_values(r, json.loads(header))
        elif kind < 9:
            at, piece = r.randrange(len(header)), r.choice(self.pieces)
            changed = header[:at] + piece + header[at + r.choice((0, 1, len(piece))) :]
        else:
            changed = change_bytes(r, header)
        return len(changed).to_bytes(8, "little") + changed + data

    def _change_values(self, r: random.Random, header: dict) -> bytes:
        """Valid JSON with a type, a shape or an offset that may not be."""
        entry = header[r.choice([key for key in header if key != "__metadata__"])]
        number: object = r.choice(NUMBERS) + r.choice((-1, 0, 1))
        number = r.choice((number, number, number, -1, 1.5, "1", None, [], True, 1e300))
        kind = r.randrange(4)
        if kind == 0:
            entry["dtype"] = r.choice(("BF16", "I64", "U8", "BOOL", "F64", "F8_E4M3", "", None, 3))
        elif kind == 1:
            entry["data_offsets"][r.randrange(2)] = number
        elif kind == 2 and entry["shape"]:
            entry["shape"][r.randrange(len(entry["shape"]))] = number
        else:
            entry["shape"] = [number] * r.randrange(12)
        return json.dumps(header).encode()


class PictureInputs:
    """Pictures of every format that is read, changed as a whole."""

    def __init__(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
        picture = Image.fromarray(noise)
        deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
        exif = Image.Exif()
        exif[0x0112] = 6
        saves = [("PNG", m, {}) for m in ("RGB", "RGBA", "P", "L", "1")]
        saves += [("JPEG", m, {"exif": exif.tobytes()}) for m in ("RGB", "L", "CMYK")]
        saves += [("JPEG", "RGB", {"progressive": True}), ("TIFF", "CMYK", {})]
        saves += [("TIFF", "RGB", {"compression": c}) for c in (None, "tiff_lzw", "tiff_deflate")]
        saves += [("GIF", "P", {}), ("BMP", "RGB", {}), ("BMP", "P", {}), ("PPM", "RGB", {})]
        saves += [("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True}), ("PPM", "1", {})]
        saves += [("JPEG2000", "RGB", {}), ("AVIF", "RGB", {})]
        self.files = []
        for form, mode, options in saves:
            content = io.BytesIO()
            try:
                picture.convert(mode).save(content, form, **options)
            except (OSError, KeyError):  # this Pillow was built without the format
                continue
            self.files.append(content.getvalue())
        for form in ("PNG", "TIFF"):
            content = io.BytesIO()
            deep.save(content, form)
            self.files.append(content.getvalue())
        frames = io.BytesIO()
        other = picture.rotate(90)
        picture.save(frames, "GIF", save_all=True, append_images=[other, other])
        self.files.append(frames.getvalue())

    def __call__(self, r: random.Random) -> bytes:
        whole = r.choice(self.files)
        if r.random() < 0.1:
            return splice(r, whole, r.choice(self.files))
        changed = change_bytes(r, whole)
        return _with_png_checksums(changed) if whole[1:4] == b"PNG" else changed


def _with_png_checksums(data: bytes) -> bytes:
    """The chunks of a PNG file with right checksums, so that Pillow looks at what they say."""
    result, at = bytearray(data), 8
    while at + 12 <= len(result):
        end = at + 8 + int.from_bytes(result[at : at + 4], "big")
        if end + 4 > len(result):
            break
        result[end : end + 4] = zlib.crc32(result[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(result)


# The promise


def read_weights(data: bytes) -> int:
    """The bytes of what was read; ValueError as a user's error."""
    try:
        tensors = parse_checkpoint(io.BytesIO(data), len(data)).tensors
        with contextlib.suppress(ValueError):  # most hold no network that is whole
            tensors |= parse_checkpoint(io.BytesIO(data), len(data), find_network).tensors
    except ValueError as error:
        raise CheckpointError(f"fuzz: {error}") from None
    return sum(array.nbytes for array in tensors.values()) // 4


def read_picture(data: bytes) -> int:
    image = decode(io.BytesIO(data))
    if image.width * image.height <= 1 << 22:  # a larger one is slow to resize, and that is fair
        preprocess(image, 32)
    return 0


@dataclass
class Target:
    make: Callable[[random.Random], bytes]
    read: Callable[[bytes], int]
    error: type[Exception] | tuple[type[Exception], ...]
    seconds: float = SECONDS
    prepare: Callable[[bytes], object] = lambda data: None  # what the input needs first
    allowed: tuple[str, ...] = ()  # events that are no harm here


def targets() -> dict[str, Target]:
    pictures = PictureInputs()
    folders = FolderInputs([data for data in pictures.files if len(data) < 1 << 12], change_bytes)
    return {
        "pth": Target(PthInputs(), read_weights, CheckpointError),
        "safetensors": Target(SafetensorsInputs(), read_weights, CheckpointError),
        "pictures": Target(pictures, read_picture, ImageError, PICTURE_SECONDS),
        "folders": Target(folders, folders.read, ERRORS, SECONDS, folders.build, READ),
    }


@dataclass
class Result:
    tried: int = 0
    accepted: int = 0
    slowest: float = 0.0
    errors: Counter = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)


class Watch:
    """Notes what Python is about to do (its audit events) while a file is being read."""

    def __init__(self) -> None:
        self.on, self.seen = False, ""
        self.allowed: tuple[str, ...] = ()
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.on and event.startswith(FORBIDDEN) and not self._harmless(event, arguments):
            self.seen = f"{event} {arguments!r:.100}"

    def _harmless(self, event: str, arguments: tuple) -> bool:
        """Whether this reader may: look at a folder, open a file to read it."""
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return event in self.allowed and not writes


def fuzz(
    name: str,
    seconds: float,
    seed: int = 0,
    keep: Path | None = None,
    watch: Watch | None = None,
    inputs: float = math.inf,
) -> Result:
    """Try so many inputs, or for some seconds; print the defects and keep their inputs."""
    target, result, watch = targets()[name], Result(), watch or Watch()
    keep = keep or Path(tempfile.mkdtemp(prefix="tinygmf-fuzz-"))
    signal.signal(signal.SIGALRM, _hang)
    r = random.Random(seed)
    for data in target.make.files:
        target.prepare(data)
        target.read(data)  # what is imported on first use is imported now
    with open(keep / f"{name}.last", "w+b") as file:  # what a crash leaves behind
        file.truncate(1 << 20)
        last = mmap.mmap(file.fileno(), 0)
        end = time.monotonic() + seconds
        while time.monotonic() < end and result.tried < inputs and len(result.defects) < 20:
            for _ in range(100):
                data = target.make(r)
                last[: len(data) + 8] = len(data).to_bytes(8, "little") + data
                if problem := try_one(target, data, result, watch):
                    path = keep / f"{name}-{seed}-{result.tried}"
                    path.write_bytes(data)
                    result.defects.append(f"{path}: {problem}")
    return result


def _hang(*_: object) -> None:
    raise RuntimeError(f"no end within {HANGS} s")


def try_one(target: Target, data: bytes, result: Result, watch: Watch) -> str:
    """Read one input; return what went wrong, if anything."""
    target.prepare(data)
    problem, watch.seen, watch.allowed, watch.on = "", "", target.allowed, True
    start = time.process_time()
    signal.setitimer(signal.ITIMER_REAL, HANGS)
    try:
        try:
            size = target.read(data)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if size > len(data):
            problem = "more was read than the file holds"
        result.accepted += 1
    except target.error as error:
        message = str(error)
        if len(message.splitlines()) != 1 or not message.isprintable():
            problem = f"not one line: {message!r}"
        elif "memory" in message:
            problem = message
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        problem = f"{type(error).__name__}: {error}"
    took = time.process_time() - start
    watch.on = False
    result.tried += 1
    result.slowest = max(result.slowest, took)
    if took > target.seconds:
        problem = problem or f"{took:.1f} s"
    return problem or watch.seen


def limit_memory() -> None:
    """Let the process have no more than MEMORY beyond what it has."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "targets", nargs="*", default=[], help="pth, safetensors, pictures, folders"
    )
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--inputs", type=float, help="for each target, in place of the seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the inputs that break the promise")
    args = parser.parse_args(arguments)
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    watch, failed, total = Watch(), False, 0
    if Path("/proc/self/statm").exists():
        limit_memory()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff talks there of every file it dislikes
    for name in args.targets or targets():
        seconds = math.inf if args.inputs else args.seconds
        result = fuzz(name, seconds, args.seed, args.keep, watch, args.inputs or math.inf)
        print(
            f"{name:12} {result.tried:10,} inputs, {result.accepted:9,} read, "
            f"{len(result.defects)} defects, the slowest took {result.slowest:.3f} s",
            *result.defects,
            sep="\n  ",
            flush=True,
        )
        failed |= bool(result.defects)
        total += result.tried
    print(f"{total:,} inputs in all")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
