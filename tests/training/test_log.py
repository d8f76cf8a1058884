"""What a run logs: tables, curves, TensorBoard files."""

import csv
import importlib.util
import json
import struct
from pathlib import Path

import pytest
from PIL import Image

from tinygmf.training import log

ROWS = [
    {
        "epoch": epoch,
        "step": 10 * epoch,
        "loss": 2.3 / epoch,
        "learning_rate": 1e-3,
        "top1": 1 - 0.9 / epoch,
        "top5": 1 - 0.5 / epoch,
        "pictures_per_second": 100.0,
        "seconds": 60.0,
    }
    for epoch in range(1, 9)
]


def write_and_resume(write, folder: Path) -> None:
    """Epoch by epoch; the run is stopped after the fifth is logged, but before it is saved."""
    for last in (1, 2, 3, 4, 5, 5, 6, 7, 8):
        write(folder, ROWS[:last])


def test_the_tables_have_a_line_for_each_epoch_also_of_a_resumed_run(tmp_path):
    write_and_resume(log.write_tables, tmp_path)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ROWS
    with open(tmp_path / "log.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [{name: float(value) for name, value in row.items()} for row in table] == ROWS
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl", "log.csv"}


def events(folder: Path) -> list:
    """TensorBoard's records: a length of 8 bytes, 4 of checksum, the record, 4 of checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for path in (folder / "tensorboard").iterdir():
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            found.append(event_pb2.Event.FromString(content[place + 12 : place + 12 + length]))
            place += length + 16
    return found


def test_tensorboard_has_a_point_for_each_epoch_also_of_a_resumed_run(tmp_path):
    pytest.importorskip("tensorboardX")
    write_and_resume(log.write_tensorboard, tmp_path)
    points: dict[str, list] = {}
    for event in events(tmp_path):
        for value in event.summary.value:
            points.setdefault(value.tag, []).append((event, value.simple_value))
    assert set(points) == {"loss", "learning_rate", "top1", "top5", "pictures_per_second"}
    for name, found in points.items():
        assert [event.step for event, _ in found] == list(range(1, 9))
        assert [value for _, value in found] == pytest.approx([row[name] for row in ROWS])
    first, second = (event.wall_time for event, _ in points["loss"][:2])
    assert second - first == pytest.approx(60)


@pytest.mark.parametrize("missing", ["tensorboardX", "matplotlib"])
def test_what_is_not_installed_is_left_out(tmp_path, monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == missing else find(name, *a)
    )
    if missing == "matplotlib":
        assert not log.write_curves(tmp_path / "curves.png", ROWS)
    else:
        log.write_tensorboard(tmp_path, ROWS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("epochs", [1, 8])
def test_the_curves_are_a_picture(tmp_path, epochs):
    pytest.importorskip("matplotlib")
    assert log.write_curves(tmp_path / "curves.png", ROWS[:epochs])
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and picture.size == (1080, 420)
