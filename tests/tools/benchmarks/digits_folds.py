"""How well the digits' recipe reads digits that no choice looked at.

    python tests/tools/benchmarks/digits_folds.py [--folds 1 2 3 4] [--seed 0] [--device CPU]

The recipe was chosen by the fifth of the digits that `tinygmf train digits` holds out, fold 0. So
that fifth flatters it. Here each of the other fifths is held out in its turn, and a fresh network
trained on all the rest by the recipe as it stands, to its last epoch.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("DEV", "CPU")


def held_out_right(fold: int, seed: int, device: str) -> tuple[int, int]:
    """Of the digits that the fold holds out, how many are read right, and how many there are."""
    from dataclasses import replace

    from tinygmf.data.digits import digits
    from tinygmf.model import create_model
    from tinygmf.training.recipe import RECIPES
    from tinygmf.training.trainer import Trainer

    data, recipe = digits(fold), replace(RECIPES["digits"], seed=seed)
    model = create_model("groupmixformer_nano", len(data.classes), seed)
    trainer = Trainer(model, data, recipe, device, progress=False)
    while not trainer.ended:
        trainer.run_epoch()
    count = len(data.val)
    return round(trainer.reports[-1].top1 * count), count


def main() -> None:
    from tinygmf.engine.devices import open_device, set_default_device

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="CPU")
    options = parser.parse_args()
    device = open_device(options.device)
    set_default_device(device)
    right, count = 0, 0
    for fold in options.folds:
        of_fold = held_out_right(fold, options.seed, device)
        print(f"fold {fold}: {of_fold[0]} of {of_fold[1]} right", flush=True)
        right, count = right + of_fold[0], count + of_fold[1]
    print(f"{right / count:.2%} of {count} digits")


if __name__ == "__main__":
    main()
