"""Trained weights by a model's name. The published files must not be redistributed, so users put
one into its place once, and from then on the name is enough.

The file's SHA-256 is kept beside it, in the format of `sha256sum`: it is written at the first use,
unless it is already there, and compared at every later one.
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
STEM = "conv_stem.proj1.weight"  # the only tensor that depends on a picture's channels


def pretrained_model(
    name: str,
    source: bool | str | os.PathLike[str],
    num_classes: int | None = None,
    seed: int = 0,
    in_chans: int = 3,
    **changes: Any,
) -> GroupMixFormer:
    """The model of this name with the weights of `source`: a file, or True for the published one.

    If `num_classes` differs from the file's, the head is fresh, drawn by `seed`; for other
    `in_chans` the stem is made from that for three (`adapted_stem`). Raises ValueError, in one
    line, if the file is not in its place; CheckpointError if it holds another network or cannot be
    read.
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
    """Weights (D, C, 3, 3) for another number of channels, as timm makes them: for one channel the
    sum over all; for more the C channels in turn, scaled down so that sums keep their size."""
    known = weight.shape[1]
    if channels == known:
        return weight
    if channels == 1:
        return weight.sum(1, keepdims=True)
    turns = np.resize(np.arange(known), channels)
    return weight[:, turns] * np.float32(known / channels)


def published_file(name: str) -> Path:
    """The published file of a model. Raises ValueError if it is missing, saying where it belongs,
    or if it has changed."""
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
    """Compare a file with its recorded SHA-256, or record it. Raises ValueError if they differ."""
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
