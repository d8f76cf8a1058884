"""The bundled network is what its provenance says, and the demo shows it."""

import numpy as np
import pytest
from PIL import Image

from tinygmf import Predictor, load_model
from tinygmf.checks.demo import ASSETS, DIGITS_WEIGHTS, SIZE
from tinygmf.commands.main import main
from tinygmf.config import variant_name
from tinygmf.image import load_image

pytest.importorskip("sklearn", reason="pip install scikit-learn for the digits")
from tinygmf.data.digits import digit_picture, digits_split


def test_the_shipped_files_are_small_and_of_the_teaching_network():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4_000_000
    assert max(path.stat().st_size for path in files) < 3_000_000
    assert variant_name(load_model(DIGITS_WEIGHTS).config) == "groupmixformer_nano"


def test_it_is_right_on_at_least_98_5_per_cent_of_the_held_out_digits():
    _, _, digits, labels, _ = digits_split()
    predict = Predictor(load_model(DIGITS_WEIGHTS), SIZE, batch_size=12, progress=False)
    answers = predict([digit_picture(digit) for digit in digits]).argmax(axis=1)
    share = (answers == labels).mean()
    assert share >= 0.985
    assert f"{share:.2%}".replace("%", " %") in (ASSETS / "PROVENANCE.txt").read_text()


def test_the_twelve_pictures_are_held_out_digits():
    _, _, digits, labels, indices = digits_split()
    paths = sorted((ASSETS / "digits").glob("*.png"))
    assert len(paths) == 12
    for path in paths:
        label, index = (int(part) for part in path.stem.split("_"))
        [place] = np.flatnonzero(indices == index)  # held out, so it is among them
        assert labels[place] == label
        assert (np.asarray(load_image(path)) == np.asarray(digit_picture(digits[place]))).all()


def test_the_demo_answers_draws_and_checks_itself(tmp_path, capsys):
    out = tmp_path / "demo.png"
    assert main(["demo", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("device: CPU") and "12 of 12 right" in text
    before, after = text.split("\nnext, after `source .venv/bin/activate`:\n")
    assert before.splitlines()[-1].endswith("the same network")
    assert after.splitlines()[0].split()[:2] == ["tinygmf", "classify"]
    with Image.open(out) as sheet:
        assert sheet.size == (512, 504)
