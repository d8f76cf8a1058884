"""What a file without weights is, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

AGAIN = "download the file itself"
WEIGHTS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".tar", ".pkl")
CONVERT = "convert it where it comes from: torch.save({'model': MODEL.state_dict()}, 'NEW.pth')"
# How files of other kinds begin, and what to do with them.
STARTS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, which stands for a file",
        "fetch it with `git lfs pull`",
    ),
    (b"<!doctype html", "a web page", f"log in or accept the terms there, and {AGAIN}"),
    (b"<html", "a web page", f"log in or accept the terms there, and {AGAIN}"),
    (b"<?xml", "an XML document, such as a server's error", AGAIN),
    (b"<", "a web page or an XML document", AGAIN),
    (b"{", "a JSON document, such as a configuration or an index", "name the weights beside it"),
    (b"[", "a JSON document", "name the weights beside it"),
    (b"gguf", "a GGUF file of quantized weights", f"take the original weights, or {CONVERT}"),
    (b"\x89hdf\r\n\x1a\n", "an HDF5 file, as Keras writes it", "take PyTorch's or safetensors'"),
    (b"\x93numpy", "a NumPy array", "save the whole state dict with safetensors"),
    (b"\x1f\x8b", "a gzip archive", "unpack it (gunzip or tar -xf) and name the file in it"),
    (b"bzh", "a bzip2 archive", "unpack it and name the file in it"),
    (b"\xfd7zxz", "an xz archive", "unpack it and name the file in it"),
    (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it and name the file in it"),
    (b"rar!", "a RAR archive", "unpack it and name the file in it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it and name the file in it"),
    (b"pk\x05\x06", "an empty zip archive", f"pack or {AGAIN} again"),
    (b"\x89png", "a picture", "name the weights"),
    (b"\xff\xd8\xff", "a picture", "name the weights"),
    (b"gif8", "a picture", "name the weights"),
    (b"%pdf", "a PDF document", "name the weights"),
)
PLAIN_PICKLE = (
    "expected a .pth or .safetensors file, found a plain Python pickle, which PyTorch did not "
    "write: if you trust it, convert it where it was made: STATE = pickle.load(open('OLD', 'rb')); "
    "torch.save({'model': {k: torch.as_tensor(v) for k, v in STATE.items()}}, 'NEW.pth')"
)


def what_file_is(start: bytes) -> str:
    """Say what a file is, from its first 512 bytes, and what to do."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    text = text if text[:1] in (b"<", b"{", b"[", b"v") else start
    for begin, kind, advice in STARTS:
        if text[: len(begin)].lower() == begin:
            return f"expected a .pth or .safetensors file, found {kind}: {advice}"
    if start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return PLAIN_PICKLE
    if start[257:262] == b"ustar":
        kind = "a tar archive"
        return f"expected a .pth or .safetensors file, found {kind}: unpack it (tar -xf)"
    if start[4:8] == b"TFL3":
        return f"expected a .pth or .safetensors file, found a TensorFlow Lite model: {CONVERT}"
    if start[:1] == b"\x08" and start[1:2] <= b"\x20" and start[2:3] in (b"\x12", b"\x3a", b"\x42"):
        return f"expected a .pth or .safetensors file, found an ONNX model: {CONVERT}"
    if not start.strip(b"\0"):
        return (
            "expected a .pth or .safetensors file, found only zeros: its download was interrupted; "
            f"{AGAIN} again"
        )
    return (
        f"expected a .pth or .safetensors file, found one that begins with {start[:16]!r}; "
        "download it again, or choose another file"
    )


def what_archive_is(names: Sequence[str]) -> str:
    """Say what a zip archive of these names is if torch.save did not write it, else ""."""
    names = [name for name in names if not name.startswith("__MACOSX/")]
    scripts = any("/code/" in name or name.endswith("/constants.pkl") for name in names)
    if scripts:
        return (
            "expected weights, found a TorchScript program: take the weights out of it with "
            "PyTorch: torch.save(torch.jit.load('OLD').state_dict(), 'NEW.pth')"
        )
    if any(name.endswith("archive_format") for name in names):
        return f"expected weights, found a torch.export program: {CONVERT}"
    if any(name.endswith("/data.pkl") for name in names):
        return ""
    if inside := [name for name in names if name.lower().endswith(WEIGHTS)]:
        return (
            f"expected weights, found a zip archive that holds {inside[0]}: unpack it, and name "
            "that file"
        )
    if any(name.endswith(".npy") for name in names):
        return "expected a .pth or .safetensors file, found NumPy's .npz: save it as safetensors"
    if "config.json" in names and "model.weights.h5" in names:
        return "expected a .pth or .safetensors file, found a Keras model: take PyTorch's weights"
    shown = ", ".join(names[:3]) or "nothing"
    return (
        f"expected PyTorch's archive with its data.pkl, found a zip archive of {shown}: unpack it, "
        "or name another file"
    )
