"""What counts as right."""

from collections import Counter

import numpy as np
import pytest

from tinygmf.data.evaluation import Answer, Evaluation, count_correct, distinct

NAMES = ["crane", "heron", "crane"]


def evaluation(pairs: list[tuple[int, int, float]]) -> Evaluation:
    """The evaluation of pictures p0, p1, …: class, answer and probability of the class."""
    confusion = np.zeros((3, 3), np.int64)
    answers = [Answer(f"p{i}", t, p, 0.9, truth) for i, (t, p, truth) in enumerate(pairs)]
    for t, p, _ in pairs:
        confusion[t, p] += 1
    return Evaluation(confusion, top5=len(pairs), seconds=2.0, answers=answers)


def test_a_report_counts_by_the_names_of_classes_and_tells_namesakes_apart():
    pairs = [(0, 0, 0.9), (0, 2, 0.1), (2, 2, 0.8), (2, 1, 0.3), (2, 2, 0.7)]
    report = evaluation(pairs).as_json(NAMES)
    names = ["crane (0)", "heron", "crane (2)"]
    assert distinct(NAMES) == names
    counted = Counter((names[t], names[p]) for t, p, _ in pairs)
    found = {(t, p): n for t, row in report["confusion"].items() for p, n in row.items()}
    assert found == counted
    assert report["top1"] == 3 / 5
    shares = {
        row["class"]: (row["pictures"], row["right"], row["top1"]) for row in report["by_class"]
    }
    assert shares == {"crane (0)": (2, 1, 1 / 2), "crane (2)": (3, 2, 2 / 3)}
    assert [row["image"] for row in report["worst"]] == ["p1", "p3"]  # wrong, the worst first


def test_the_worst_answers_are_the_wrong_ones_then_those_least_sure_of_the_true_class():
    pairs = [(0, 0, 0.4), (0, 2, 0.45), (2, 2, 0.8), (2, 1, 0.3), (2, 2, 0.35)]
    found = evaluation(pairs)
    assert [one.source for one in found.worst(9)] == ["p3", "p1", "p4", "p0", "p2"]
    assert [one.source for one in found.worst(2)] == ["p3", "p1"]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_label_counts_where_fewer_than_k_classes_come_before_it(k):
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 4, (50, 7)).astype(np.float32)  # with many equal ones
    labels = rng.integers(0, 7, 50)
    before = [  # larger ones, and equal ones of a lower number
        sum(row[j] > row[label] or (row[j] == row[label] and j < label) for j in range(7))
        for row, label in zip(logits, labels, strict=True)
    ]
    assert count_correct(logits, labels, k) == sum(number < k for number in before)


def test_with_fewer_classes_than_k_every_label_counts():
    assert count_correct(np.zeros((3, 2)), np.array([0, 1, 1]), k=5) == 3
