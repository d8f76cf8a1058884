"""The tables and figures of an evaluation's answers."""

import csv

import numpy as np
import pytest
from PIL import Image

from tinygmf.data.evaluation import Answer, Evaluation
from tinygmf.study import outcome
from tinygmf.study.outcome import draw_confusion, shortened, spread, write_outcome

NAMES = ["cat", "dog", "$cow$"]


@pytest.fixture
def found() -> Evaluation:
    """Nine pictures, named by number; cows are taken for dogs."""
    answers = [Answer(i, i % 3, min(i % 3, 1), 0.8, 0.8 if i % 3 < 2 else i / 50) for i in range(9)]
    return Evaluation(np.array([[3, 0, 0], [0, 3, 0], [0, 3, 0]]), answers=answers)


def load(number: int) -> Image.Image:
    return Image.new("RGB", (40, 30), (20 * number, 0, 0))


def texts(figure) -> str:
    axes = figure.axes
    return " ".join(
        [*(a.get_title() for a in axes), *(t.get_text() for a in axes for t in a.texts)]
    )


def test_a_run_leaves_a_table_and_three_figures(found, tmp_path):
    pytest.importorskip("matplotlib")
    written = write_outcome(tmp_path, found, NAMES, load)
    assert written == ["by_class.csv", "confusion.png", "predictions.png", "worst.png"]
    with open(tmp_path / "by_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["class"], row["pictures"], row["right"]) for row in rows] == [
        *(("cat", "3", "3"), ("dog", "3", "3"), ("$cow$", "3", "0"))
    ]
    for name in written[1:]:
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG" and image.width > 300


def test_without_matplotlib_the_table_is_written_and_no_figure_promised(
    found, tmp_path, monkeypatch
):
    monkeypatch.setattr(outcome, "has_matplotlib", lambda: False)
    assert write_outcome(tmp_path, found, NAMES, load) == ["by_class.csv"]
    assert [path.name for path in tmp_path.iterdir()] == ["by_class.csv"]


def test_a_sheet_takes_pictures_of_each_class_in_turn(found):
    assert [one.label for one in spread(found.answers, most=5)] == [0, 1, 2, 0, 1]
    assert len(spread(found.answers)) == 9


def test_an_answer_stands_over_its_picture_and_a_wrong_one_says_what_it_is(found):
    pytest.importorskip("matplotlib")
    figure = outcome.draw_answers(found.worst(1), NAMES, load, "The worst")
    assert texts(figure).strip() == "dog 80%\nit is \\$cow\\$"


@pytest.mark.parametrize("classes", [2, 30, 200])
def test_a_confusion_has_its_numbers_where_they_find_room(classes):
    pytest.importorskip("matplotlib")
    figure = draw_confusion(7 * np.eye(classes, dtype=np.int64), [f"c{i}" for i in range(classes)])
    assert texts(figure).split().count("7") == (classes if classes <= 25 else 0)
    assert f"{7 * classes} of {7 * classes} right" in texts(figure)


def test_a_long_name_is_cut():
    assert shortened("n" * 40) == "n" * 17 + "…"
