"""What a start is worth on a small folder of photographs: fresh weights, or bundled ones.

    python tests/tools/benchmarks/finetune_starts.py [--starts fresh digits …] [--seeds 0 1 2]
        [--split 0] [--pieces 5] [--folder PATH] [-- option of `tinygmf train` …]

The folder has nine classes: which photograph of scikit-image or scikit-learn a piece comes from, of
those that no network in the package was trained on. Each photograph is cut into twelve fields; the
pieces of three of them, which `--split` chooses, are held out: 135. Of the others there are 81
times `--pieces`. `tinygmf train` then runs on it with its defaults and these options, from each
start with each seed. What was chosen by one split is to be reported on another.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

os.environ.setdefault("DEV", "CPU")
PHOTOGRAPHS = {
    "skimage": [
        *("data/chelsea.png", "data/coins.png", "data/gravel.png", "data/moon.png"),
        *("data/page.png", "data/retina.jpg", "data/rocket.jpg"),
    ],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
}
COLUMNS, ROWS, HELD_OUT, PIECES = 4, 3, 3, 5  # fields, those held out, and pieces of each field


def make_folder(folder: Path, split: int, pieces: int) -> None:
    """`train/CLASS/*.jpg` and `val/CLASS/*.jpg`, 81 times `pieces` and 135 of them."""
    for package, names in PHOTOGRAPHS.items():
        found = find_spec(package)
        assert found is not None and found.origin is not None, f"pip install {package}"
        for name in names:
            path = Path(found.origin).parent / name
            cut(Image.open(path).convert("RGB"), folder, path.stem, split, pieces)


def cut(photo: Image.Image, folder: Path, name: str, split: int, pieces: int) -> None:
    rng = np.random.default_rng([split, *name.encode()])
    held_out = rng.permutation(COLUMNS * ROWS)[:HELD_OUT]
    width, height = photo.width // COLUMNS, photo.height // ROWS
    for field in range(COLUMNS * ROWS):
        place = folder / ("val" if field in held_out else "train") / name
        place.mkdir(parents=True, exist_ok=True)
        left, top = field % COLUMNS * width, field // COLUMNS * height
        for piece in range(PIECES if field in held_out else pieces):
            side = int(min(width, height) * rng.uniform(0.6, 1))
            x = left + int(rng.integers(width - side + 1))
            y = top + int(rng.integers(height - side + 1))
            picture = photo.crop((x, y, x + side, y + side)).resize((128, 128))
            picture.save(place / f"{field}_{piece}.jpg", quality=90)


def best_and_last(folder: Path, start: str, seed: int, options: list[str]) -> tuple[float, float]:
    """Top-1 on what is held out: of the best epoch, and of the last."""
    from tinygmf.commands.main import build_parser
    from tinygmf.commands.train import chosen_network, opened_devices, recipe_and_data
    from tinygmf.training.trainer import Trainer

    begin = [] if start == "fresh" else ["--weights", start]
    arguments = ["train", str(folder), *begin, "--size", "64", "--seed", str(seed), *options]
    args = build_parser(["train"]).parse_args([*arguments, "--device", "CPU"])
    device = opened_devices(args)
    recipe, data = recipe_and_data(args, None)
    trainer = Trainer(chosen_network(args, data, recipe), data, recipe, device, progress=False)
    while not trainer.ended:
        trainer.run_epoch()
    top1 = [report.top1 for report in trainer.reports]
    return max(top1), top1[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    starts = ["fresh", "digits", "scenes-segment", "scenes-instance"]
    parser.add_argument("--starts", nargs="+", default=starts)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", type=int, default=0)
    parser.add_argument("--pieces", type=int, default=PIECES, help="of each field to train on")
    parser.add_argument("--folder", type=Path, help="another folder of pictures")
    parser.add_argument("options", nargs="*", help="of `tinygmf train`, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch) / "photographs"
        if options.folder is None:
            make_folder(folder, options.split, options.pieces)
        for start in options.starts:
            found = [best_and_last(folder, start, s, options.options) for s in options.seeds]
            last = ", ".join(f"{last:.2%}" for _, last in found)
            means = np.mean(found, axis=0)
            print(f"{start}: {means[1]:.2%} ({last}); best epochs {means[0]:.2%}", flush=True)


if __name__ == "__main__":
    main()
