"""The promise of fuzz_checkpoints.py, where what an input reaches decides how it is changed next.

    pip install atheris
    python tests/tools/guided.py pth -runs=100000

Atheris keeps the inputs that reach new lines of the readers, and changes those again. Half of the
inputs are those of fuzz_checkpoints.py. All options are libFuzzer's: -max_total_time, -seed, ...
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=[
        "tinygmf.weights.entries",
        "tinygmf.weights.notes",
        "tinygmf.weights.pth",
        "tinygmf.weights.reading",
        "tinygmf.weights.recognize",
        "tinygmf.weights.safetensors",
        "tinygmf.weights.unpickle",
        "tinygmf.image",
    ]
):
    from fuzz_checkpoints import Result, Watch, targets, try_one


def main(name: str, *options: str) -> None:
    target, result, watch = targets()[name], Result(), Watch()
    corpus = Path(tempfile.mkdtemp(prefix="tinygmf-fuzz-"))
    for i, data in enumerate(target.make.files):
        (corpus / str(i)).write_bytes(data)
        target.prepare(data)
        target.read(data)  # what is imported on first use is imported now

    def one(data: bytes) -> None:
        if problem := try_one(target, data, result, watch):
            raise AssertionError(problem)

    def change(data: bytes, size: int, seed: int) -> bytes:
        if seed % 2:
            return atheris.Mutate(data, size)
        return target.make(random.Random(seed))[:size]

    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
