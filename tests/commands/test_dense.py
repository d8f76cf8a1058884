"""`segment`, `detect`, `evaluate --task` and `train --task` as a user calls them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.mask import decode

from tinygmf.commands.evaluate_dense import percent
from tinygmf.commands.main import main
from tinygmf.commands.train_dense import has_this_head
from tinygmf.data.scenes import SHAPES, Scene, annotated, scene
from tinygmf.dense.networks import create_model, load_model
from tinygmf.training.dense_networks import head_options, named
from tinygmf.weights.checkpoint import save_model

CLASSES = ["background", *SHAPES]
ON_CPU = ["--device", "CPU"]


def fresh(head: str, path: Path) -> str:
    model = create_model(head, len(CLASSES), **head_options(head, 10, small=True))
    save_model(named(model, CLASSES, 64), path)
    return str(path)


def write_scenes(folder: Path, numbers: range, classes: list[str] = CLASSES) -> list[Path]:
    """Scenes as `images/NUMBER.png`, with their classes in `masks/NUMBER.png`, numbered as in
    `classes`."""
    table = np.array([classes.index(name) for name in CLASSES], np.uint8)
    paths = []
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        found = scene(number)
        paths.append(folder / "images" / f"{number}.png")
        Image.fromarray(found.picture).save(paths[-1])
        truth = annotated(found, "segment").class_map
        Image.fromarray(table[truth]).save(folder / "masks" / f"{number}.png")
    return paths


def test_segment_draws_and_says_how_much_of_each_class_there_is(tmp_path, capsys):
    weights, out = fresh("semantic_fpn", tmp_path / "fpn.safetensors"), tmp_path / "out"
    pictures = write_scenes(tmp_path, range(2))
    beside = tmp_path / "other" / pictures[0].name  # of the same name
    beside.parent.mkdir()
    beside.write_bytes(pictures[0].read_bytes())
    (tmp_path / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    words = [str(tmp_path / "images"), str(beside), "--weights", weights]
    assert main(["segment", *words, "--out", str(out), *ON_CPU]) == 1  # one was broken
    shown = capsys.readouterr()
    assert "broken.png" in shown.err
    assert sorted(path.name for path in out.iterdir()) == ["0.png", "0_2.png", "1.png"]
    assert (out / "0.png").read_bytes() == (out / "0_2.png").read_bytes()
    shares = [line.split("%")[0] for line in shown.out.splitlines() if "%" in line]
    assert sum(map(float, shares)) == pytest.approx(300, abs=0.1)

    assert main(["segment", str(pictures[0]), "--weights", weights, "--json", *ON_CPU]) == 0
    results = json.loads(capsys.readouterr().out)
    masks = np.stack([decode(result["segmentation"]) for result in results])
    assert masks.shape[1:] == (128, 128) and (masks.sum(0) == 1).all()  # every pixel, once
    assert [CLASSES[r["category_id"]] for r in results] == [r["category"] for r in results]


@pytest.mark.slow
def test_detect_gives_coco_s_results_and_draws_those_above_the_score(tmp_path, capsys):
    weights, out = fresh("maskrcnn", tmp_path / "maskrcnn.safetensors"), tmp_path / "out"
    (picture,) = write_scenes(tmp_path, range(1))
    words = [str(picture), "--weights", weights, "--out", str(out), *ON_CPU]
    assert main(["detect", *words, "--json"]) == 0
    for result in json.loads(capsys.readouterr().out):
        assert {"image_id", "category_id", "bbox", "score", "segmentation"} <= result.keys()
        assert decode(result["segmentation"]).shape == (128, 128)
    assert main(["detect", *words, "--score", "1"]) == 0
    assert "nothing found" in capsys.readouterr().out
    assert Image.open(out / "0.png").width == 512


@pytest.mark.slow
def test_a_folder_of_masks_from_training_to_a_drawing(tmp_path, capsys):
    for part, numbers in (("train", range(8)), ("val", range(8, 12))):
        write_scenes(tmp_path / "data" / part, numbers)
    run, head = tmp_path / "run", ["--head", "semantic_fpn", "--channels", "10"]
    size = ["--size", "64", "--batch-size", "4", "--epochs", "1", "--warmup-steps", "1"]
    words = ["train", str(tmp_path / "data"), "--task", "segment", *head, *size, *ON_CPU]
    assert main([*words, "--out", str(run)]) == 0
    assert "mean IoU" in capsys.readouterr().out
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2]

    weights, figures = ["--weights", str(run / "model.safetensors")], tmp_path / "figures.json"
    words = ["evaluate", str(tmp_path / "data"), "--task", "segment", *weights, *ON_CPU]
    assert main([*words, "--json", str(figures)]) == 0
    assert json.loads(figures.read_text())["mean_iou"] == pytest.approx(rows[0]["mean_iou"])
    picture = str(tmp_path / "data" / "val" / "images" / "8.png")
    assert main(["segment", picture, *weights, "--out", str(tmp_path / "out"), *ON_CPU]) == 0
    assert (tmp_path / "out" / "8.png").exists()


def write_parts(folder: Path, classes: list[str], named: bool = True) -> Path:
    """A scene to train on and two to measure on, and the names of their classes."""
    write_scenes(folder / "train", range(1), classes)
    write_scenes(folder / "val", range(2, 4), classes)
    if named:
        (folder / "classes.txt").write_text("\n".join(classes))
    return folder


def measure(folder: Path, *options: str) -> tuple[int, dict]:
    """The exit code and the figures of the bundled network."""
    report = folder / "figures.json"
    words = ["evaluate", str(folder), "--task", "segment", "--weights", "scenes-segment"]
    code = main([*words, "--json", str(report), *options, *ON_CPU])
    return code, json.loads(report.read_text())


def test_classes_are_measured_by_their_names_in_any_order(tmp_path, capsys):
    code, straight = measure(write_parts(tmp_path / "a", CLASSES))
    assert code == 0 and straight["mean_iou"] > 0.6
    code, sorted_ = measure(write_parts(tmp_path / "b", sorted(CLASSES)))
    assert code == 0 and sorted_ == straight  # the network's order is the table's, too
    assert "numbers decide" not in capsys.readouterr().err
    code, nameless = measure(write_parts(tmp_path / "c", CLASSES, named=False))
    assert nameless["mean_iou"] == straight["mean_iou"]
    assert "c: its classes have no names, their numbers decide" in capsys.readouterr().err
    assert [row["class"] for row in nameless["classes"]] == [f"class {i}" for i in range(7)]

    (tmp_path / "a" / "val" / "images" / "2.png").write_bytes(b"no picture")
    capsys.readouterr()
    code, found = measure(tmp_path / "a")
    assert code == 1 and found["pictures"] == 1
    assert "of 1 picture\n" in capsys.readouterr().out


def test_classes_that_the_network_does_not_know_are_refused(failure, tmp_path):
    classes = [*CLASSES[:-2], "cow", "sky"]
    folder = write_parts(tmp_path / "data", CLASSES)
    (folder / "classes.txt").write_text("\n".join(classes))
    words = ["evaluate", folder, "--task", "segment", "--weights", "scenes-segment", *ON_CPU]
    line = failure(*words)
    assert "network's 7 classes (background, circle, ring, triangle, square, …)" in line
    assert "found others: cow, sky: choose" in line
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    names = tmp_path / "names.txt"
    names.write_text("\n".join(classes))
    assert "found others: star, cross: choose" in failure(*words, "--classes", names)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--size", 64),
        ("--labels", "x"),
        ("--batch-size", 3),
        ("--dtype", "float16"),
        ("--out", "x"),
    ],
)
def test_options_of_classification_are_refused_with_a_task(failure, option, value):
    words = ["evaluate", "scenes", "--task", "segment", "--weights", "scenes-segment"]
    line = failure(*words, option, value)
    assert f"{option}: expected no such option with --task, found one: leave it out" in line


@pytest.mark.parametrize(("value", "text"), [(0.905, "90.50%"), (float("nan"), "none")])
def test_the_figure_of_a_class_that_no_picture_has_is_none(value, text):
    assert percent(value) == text


def test_another_network_gives_its_backbone_to_a_fresh_head_and_that_is_said(tmp_path, capsys):
    weights = fresh("semantic_fpn", tmp_path / "fpn.safetensors")
    known = load_model(weights)
    assert has_this_head(weights, known, "semantic_fpn", CLASSES)
    assert not capsys.readouterr().err
    for head, classes, of in (
        ("semantic_fpn", sorted(CLASSES), "other classes"),  # or their names would change places
        ("semantic_fpn", [*CLASSES, "sky"], "7 classes"),
        ("retinanet", CLASSES, "7 classes"),
    ):
        assert not has_this_head(weights, known, head, classes)
        line = f"only the backbone of this semantic_fpn of {of} is used"
        assert line in capsys.readouterr().err
    known.settings = known.settings.changed(classes=())
    assert has_this_head(weights, known, "semantic_fpn", sorted(CLASSES))  # the number decides


def demo(command: str, capsys) -> list[tuple[Scene, list[dict]]]:
    """What `--demo` says of each of its scenes."""
    assert main([command, "--demo", "--json", *ON_CPU]) == 0
    results = json.loads(capsys.readouterr().out)
    said = {name: [r for r in results if r["file_name"] == name] for name in names_in(results)}
    for name in said:
        truth = scene(int(Path(name).stem), held_out=True)
        drawn = np.asarray(Image.open(name)).astype(int)
        assert np.abs(drawn - truth.picture).mean() < 1  # exactly, with the same Pillow
    return [(scene(int(Path(name).stem), held_out=True), said[name]) for name in said]


def names_in(results: list[dict]) -> list[str]:
    return sorted({result["file_name"] for result in results})


def test_the_segmentation_demo_sees_what_its_scenes_are_made_of(capsys):
    found = demo("segment", capsys)
    assert len(found) == 3
    for truth, results in found:
        known = annotated(truth, "segment").class_map
        right = [decode(r["segmentation"])[known == r["category_id"]].sum() for r in results]
        assert sum(map(int, right)) > 0.9 * known.size


@pytest.mark.slow
def test_the_detection_demo_finds_most_objects_of_its_scenes(capsys):
    found = demo("detect", capsys)
    objects, hits = 0, 0
    for truth, results in found:
        for mask, label in zip(truth.masks, truth.labels, strict=True):
            own = [r for r in results if r["category_id"] == label and r["score"] > 0.5]
            masks = [decode(r["segmentation"]).astype(bool) for r in own]
            hits += any((m & mask).sum() > 0.5 * (m | mask).sum() for m in masks)
            objects += 1
    assert hits > 0.7 * objects


def test_the_sizes_of_a_network_are_checked_as_its_option_is(failure, tmp_path, capsys):
    model = load_model("scenes-segment")
    model.settings = model.settings.changed(min_size=9_000_000, max_size=9_000_000)
    save_model(model, weights := tmp_path / "x.safetensors")
    for command in (["segment", "a.png"], ["evaluate", "scenes", "--task", "segment"]):
        line = failure(*command, "--weights", weights, *ON_CPU)
        assert "x.safetensors: min_size 9000000: expected pictures that fit in" in line
    line = failure("segment", "a.png", "--weights", weights, "--min-size", 8_000_000, *ON_CPU)
    assert "--min-size 8000000: expected pictures that fit in" in line
    with pytest.raises(SystemExit):
        main(["segment", "--demo", "--min-size", "0"])
    assert "--min-size: expected a whole number from 1 to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["detect", "a.png", "--weights", "FPN"], "expected retinanet or maskrcnn, found semantic"),
        (["segment", "a.png", "--weights", "FPN"], "a.png"),
        (["evaluate", "scenes", "--task", "detect", "--weights", "FPN"], "expected retinanet or"),
        (
            ["train", "scenes", "--task", "segment", "--head", "retinanet"],
            "--head: expected upernet",
        ),
        (["train", "scenes", "--task", "segment", "--mixup", "1"], "--mixup: expected no such"),
        (["train", "digits", "--head", "upernet"], "--head: expected --task with it, found none"),
        (["train", "nothing", "--task", "detect"], "nothing: expected annotated pictures"),
        (
            ["train", "scenes", "--task", "segment", "--size", "100000000"],
            "--size 100000000: expected pictures that fit in",
        ),
        (
            ["train", "scenes", "--task", "segment", "--learning-rate", "inf"],
            "--learning-rate: expected a finite number, found inf",
        ),
        (["segment", "--demo", "a.png"], "--demo: expected it alone, found PICTURE"),
        (["detect"], "PICTURE: expected one, found none"),
        (["detect", "a.png"], "--weights: expected one, found none"),
        (
            ["train", "scenes", "--task", "segment", "--batch-size", "20000"],
            "scenes: expected at least one batch of 20000 pictures",
        ),
    ],
)
def test_a_mistake_is_one_line_that_says_what_was_expected(words, said, tmp_path, capsys):
    if "FPN" in words:
        weights = fresh("semantic_fpn", tmp_path / "fpn.safetensors")
        words = [weights if word == "FPN" else word for word in words]
    assert main([*words, *ON_CPU]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert said in shown[-1] and shown[-1].startswith("tinygmf: ")
