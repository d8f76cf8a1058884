"""Trained weights by a model's name: the published files cannot be passed on, so that a user puts
one into its place once, and from then on its name is enough.

Beside it stands its SHA-256, as `sha256sum` writes it: noted at the first use, unless it is there
already, and compared at every other.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tinygmf.config import VARIANTS, full_name, variant_name
from tinygmf.engine.user_cache import WEIGHTS, cache_directory
from tinygmf.files import replacing
from tinygmf.model import GroupMixFormer
from tinygmf.weights.checkpoint import CheckpointError, load_state_dict, load_weights

ZOO = "https://github.com/AILab-CVC/GroupMixFormer#-model-zoo"
STEM = "conv_stem.proj1.weight"  # the one tensor that sees the channels of a picture


def pretrained_model(
    name: str,
    source: bool | str | os.PathLike[str],
    num_classes: int | None = None,
    seed: int = 0,
    in_chans: int = 3,
    **changes: Any,
) -> GroupMixFormer:
    """The model of this name with the weights of `source`: a file, or True for the published one.

    Another `num_classes` than the file's gives a fresh head, drawn by `seed`; other `in_chans` a
    stem made from that of three (`adapted_stem`). Raises ValueError, in one line, where the file is
    not in its place or is of another network; CheckpointError where it cannot be read.
    """
    name = full_name(name)
    if name not in VARIANTS:
        raise ValueError(f"model {name!r}: expected one of {', '.join(VARIANTS)}")
    path = published_file(name) if source is True else Path(str(source))
    weights = load_weights(path)
    if (found := variant_name(weights.config)) != name:
        raise CheckpointError(f"{path}: expected weights of {name}, found {found or 'others'}")
    try:
        config = replace(weights.config, in_chans=in_chans, **changes)
    except TypeError as error:
        raise ValueError(f"model {name!r}: {error}") from None
    model = GroupMixFormer(config, seed=None)
    stem = adapted_stem(weights.arrays[STEM], in_chans)
    load_state_dict(model, {**weights.arrays, STEM: stem}, str(path))
    model.settings = weights.settings
    if num_classes not in (None, config.num_classes):
        model.reset_classifier(num_classes, seed)
    return model


def adapted_stem(weight: np.ndarray, channels: int) -> np.ndarray:
    """Weights (D, C, 3, 3) for pictures of other channels, as timm makes them: of one channel the
    sum over all; of more those of the C in turn, smaller so that sums stay as large."""
    known = weight.shape[1]
    if channels == known:
        return weight
    if channels == 1:
        return weight.sum(1, keepdims=True)
    turns = np.resize(np.arange(known), channels)
    return weight[:, turns] * np.float32(known / channels)


def published_file(name: str) -> Path:
    """The published file of a model. ValueError, which says where it belongs, where it is not; for
    one that is another than it was."""
    path = cache_directory() / WEIGHTS / f"{name}.pth"
    if not path.is_file():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        raise ValueError(
            f"{path}: expected the published weights of {name}, found no file: download them from "
            f"{ZOO} and put them there, or give pretrained the path of a file"
        )
    check_digest(path)
    return path


def check_digest(path: Path) -> None:
    """Compare a file with its noted SHA-256, or note it. Raises ValueError where they differ."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    note = path.with_name(path.name + ".sha256")
    if not note.exists():
        with replacing(note) as new:
            new.write(f"{found}  {path.name}\n".encode())
        return
    expected = note.read_text(encoding="utf-8").split(maxsplit=1)[:1]
    if expected != [found]:
        raise ValueError(
            f"{path}: expected the SHA-256 {''.join(expected)}, as in {note.name}, found {found}: "
            f"download it again, or remove {note.name} if you replaced the file"
        )
