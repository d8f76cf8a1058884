"""Classify twelve handwritten digits with the bundled network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tinygmf.checks.verify import TOLERANCES, relative_difference, run_reference
from tinygmf.engine.devices import device_description, open_device, set_default_device
from tinygmf.engine.predictor import Predictor, probabilities, ranking
from tinygmf.files import replacing, require_writable
from tinygmf.image import load_image, normalize, resize_and_crop
from tinygmf.weights.checkpoint import NetworkWeights, load_weights

ASSETS = Path(__file__).parents[1] / "assets"
DIGITS_WEIGHTS = ASSETS / "digits.safetensors"  # groupmixformer_nano, 10 classes
SIZE = 32  # pixels
NEXT = """
next, after `source .venv/bin/activate`:
  tinygmf classify PICTURE --weights digits    a digit of your own, white on black
  tinygmf train FOLDER                         your pictures, a folder for each class
  tinygmf --help                               everything else"""
TILE, CAPTION, COLUMNS = 128, 40, 4  # of the saved picture: pixels, pixels, pictures in a row


def run_demo(out: str, device: str | None) -> int:
    """Classify the pictures, print a table, save a picture of it; return the exit code."""
    require_writable(out)
    device = open_device(device)
    set_default_device(device)
    print(f"device: {device_description(device)}")
    paths = sorted((ASSETS / "digits").glob("*.png"))
    crops = [resize_and_crop(load_image(path), SIZE) for path in paths]
    truths = [int(path.name[0]) for path in paths]  # a file is CLASS_NUMBER.png
    network = load_weights(DIGITS_WEIGHTS)
    predict = Predictor(network, SIZE, batch_size=len(paths), device=device)
    logits = predict([normalize(crop) for crop in crops])
    rows = probabilities(logits)

    print(f"\n{'picture':14} {'answer':>6} {'probability':>12}   next best")
    for path, truth, row in zip(paths, truths, rows, strict=True):
        best, second = (int(i) for i in ranking(row)[:2])
        mark = "" if best == truth else f"   (it is a {truth})"
        print(f"{path.name:14} {best:6} {row[best]:12.2%}   {second} {row[second]:.2%}{mark}")
    right = sum(int(row.argmax()) == truth for row, truth in zip(rows, truths, strict=True))
    print(f"{right} of {len(paths)} right")
    with replacing(out) as file:
        draw_predictions(crops, rows, truths).save(file, "PNG")
    print(f"picture: {out}")
    code = _check_one(network, crops[0], logits[0])
    print(NEXT)
    return code


def _check_one(network: NetworkWeights, crop: Image.Image, logits: np.ndarray) -> int:
    """Compare the first picture's logits with the pure-Python reference; return the exit code."""
    expected = run_reference(network, crop)[-1]
    difference = relative_difference(logits, expected)
    tolerance = TOLERANCES["float32"]
    same = difference <= tolerance
    verdict = "the same network" if same else f"NOT the same, more than {tolerance:g}"
    print(f"check: logits differ from the pure-Python reference by {difference:.1e}: {verdict}")
    return 0 if same else 1


def draw_predictions(crops: list[Image.Image], rows: np.ndarray, truths: list[int]) -> Image.Image:
    """The pictures enlarged, in rows of four, each above its answer and probability."""
    lines = -(-len(crops) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE, lines * (TILE + CAPTION)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=20)
    for i, (crop, row, truth) in enumerate(zip(crops, rows, truths, strict=True)):
        x, y = i % COLUMNS * TILE, i // COLUMNS * (TILE + CAPTION)
        sheet.paste(crop.resize((TILE - 8, TILE - 8), Image.Resampling.NEAREST), (x + 4, y + 4))
        best = int(row.argmax())
        colour = "black" if best == truth else "#b03000"
        middle = (x + TILE // 2, y + TILE + CAPTION // 2 - 4)
        draw.text(middle, f"{best}   {row[best]:.1%}", fill=colour, font=font, anchor="mm")
    return sheet
