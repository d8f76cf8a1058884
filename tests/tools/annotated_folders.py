"""The same pictures with two objects each, annotated in every format that people have."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tinygmf.data.dense_data import DenseDataset
from tinygmf.data.outlines import encode

NAMES = ["cat", "dog"]
WIDTH, HEIGHT = 40, 30
# Two objects a picture: class, x0, y0, x1, y1
THINGS = [(1, 2, 3, 12, 13), (2, 20, 5, 38, 29)]
PARTS = {"train": 4, "val": 2}


def picture(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 60)).save(path)


def class_map(values: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    """Background and two classes, under the numbers given."""
    found = np.full((HEIGHT, WIDTH), values[0], np.uint8)
    for label, x0, y0, x1, y1 in THINGS:
        found[y0:y1, x0:x1] = values[label]
    return found


def masks() -> np.ndarray:
    return np.stack([class_map() == label for label, *_ in THINGS])


def write_mask(path: Path, values: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:  # the colours are of no interest, and here they mislead
        image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(path)


def coco_content(part: str, form: str = "polygons") -> dict:
    images, notes = [], []
    for number in range(PARTS[part]):
        size = {"width": WIDTH, "height": HEIGHT}
        images.append({"id": 100 + number, "file_name": f"{number}.png", **size})
        for (label, x0, y0, x1, y1), mask in zip(THINGS, masks(), strict=True):
            code = encode(mask)
            runs = {"size": code["size"], "counts": uncompressed(mask)}
            corners = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            note = {"id": len(notes) + 1, "image_id": 100 + number, "category_id": label * 10}
            note |= {
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": 7.0,
                "iscrowd": int(form == "runs"),
            }
            notes.append(
                note | {"segmentation": {"polygons": corners, "code": code}.get(form, runs)}
            )
    categories = [{"id": 10 * i, "name": name} for i, name in enumerate(NAMES, 1)]
    return {"images": images, "annotations": notes, "categories": categories[::-1]}


def uncompressed(mask: np.ndarray) -> list[int]:
    """Run lengths by counting, pixel by pixel."""
    counts, last = [0], False
    for pixel in mask.T.ravel():
        if pixel != last:
            counts.append(0)
            last = pixel
        counts[-1] += 1
    return counts


def coco(folder: Path, form: str = "polygons") -> Path:
    for part, count in PARTS.items():
        file = folder / "annotations" / f"instances_{part}2017.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(coco_content(part, form)))
        for number in range(count):
            picture(folder / f"{part}2017" / f"{number}.png")
    return folder


def coco_beside(folder: Path) -> Path:
    for part, name in (("train", "train"), ("val", "valid")):
        for number in range(PARTS[part]):
            picture(folder / name / f"{number}.png")
        (folder / name / "_annotations.coco.json").write_text(json.dumps(coco_content(part)))
    return folder


def coco_file(folder: Path) -> Path:
    for number in range(PARTS["train"]):
        picture(folder / "images" / f"{number}.png")
    (folder / "labels.json").write_text(json.dumps(coco_content("train", "code")))
    return folder / "labels.json"


def xml(name: str, things: list[tuple] = THINGS, size: bool = True) -> str:
    objects = "".join(
        f"<object><name>{NAMES[label - 1]}</name><difficult>{label - 1}</difficult><bndbox>"
        f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        "</bndbox></object>"
        for label, x0, y0, x1, y1 in things
    )
    sides = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>" if size else ""
    return f"<annotation><filename>{name}</filename>{sides}{objects}</annotation>"


def voc(folder: Path, size: bool = True) -> Path:
    root, lists = folder / "VOC2012", {}
    for part, count in PARTS.items():
        lists[part] = [f"{part}_{number}" for number in range(count)]
        for name in lists[part]:
            picture(root / "JPEGImages" / f"{name}.jpg")
            (root / "Annotations").mkdir(exist_ok=True)
            (root / "Annotations" / f"{name}.xml").write_text(xml(f"{name}.jpg", size=size))
            write_mask(root / "SegmentationClass" / f"{name}.png", class_map(), palette=True)
            write_mask(root / "SegmentationObject" / f"{name}.png", class_map(), palette=True)
        for kind in ("Main", "Segmentation"):
            (root / "ImageSets" / kind).mkdir(parents=True, exist_ok=True)
            (root / "ImageSets" / kind / f"{part}.txt").write_text("\n".join(lists[part]))
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


def voc_beside(folder: Path) -> Path:
    for part, count in PARTS.items():
        for number in range(count):
            picture(folder / part / f"{number}.png")
            (folder / part / f"{number}.xml").write_text(xml(r"C:\pictures\old.png", size=False))
    return folder


def yolo_line(thing: tuple, polygons: bool) -> str:
    label, x0, y0, x1, y1 = thing
    if polygons:
        numbers = [x0 / WIDTH, y0 / HEIGHT, x1 / WIDTH, y0 / HEIGHT]
        numbers += [x1 / WIDTH, y1 / HEIGHT, x0 / WIDTH, y1 / HEIGHT]
    else:
        numbers = [(x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT]
        numbers += [(x1 - x0) / WIDTH, (y1 - y0) / HEIGHT]
    return " ".join([str(label - 1), *map(str, numbers)])


def yolo(folder: Path, polygons: bool = False) -> Path:
    for part, count in PARTS.items():
        for number in range(count):
            picture(folder / "images" / part / f"{number}.png")
            label = folder / "labels" / part / f"{number}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("\n".join(yolo_line(thing, polygons) for thing in THINGS))
    (folder / "data.yaml").write_text(
        "path: .  # here\ntrain: images/train\nval: images/val\n\nnames:\n  0: cat\n  1: 'dog'\n"
    )
    return folder


def yolo_polygons(folder: Path) -> Path:
    return yolo(folder, polygons=True)


def yolo_named(folder: Path) -> Path:
    """Without a YAML file, which is named instead: its folders, and the names, in other forms."""
    yolo(folder)
    (folder / "data.yaml").unlink()
    file = folder / "mine.yml"
    file.write_text('train:\n- images/train\nval: ["images/val"]\nnc: 2\nnames: [cat, "dog"]\n')
    return file


def yolo_classes(folder: Path) -> Path:
    yolo(folder)
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("cat\ndog\n")
    return folder


def yolo_labeled(folder: Path) -> Path:
    """As labeling tools leave it: names beside the labels, and nothing to validate on."""
    for number in range(PARTS["train"]):
        picture(folder / "images" / f"{number}.jpg")
        label = folder / "labels" / f"{number}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text("\n".join(yolo_line(thing, False) for thing in THINGS))
    (folder / "labels" / "classes.txt").write_text("cat\ndog\n")
    return folder


def coco_code(folder: Path) -> Path:
    return coco(folder, "code")


def voc_without_size(folder: Path) -> Path:
    return voc(folder, size=False)


def masks_beside(folder: Path, values: tuple[int, ...] = (0, 1, 2), names: bool = True) -> Path:
    for part, count in PARTS.items():
        for number in range(count):
            picture(folder / "images" / part / f"{number}.jpg")
            write_mask(
                folder / "masks" / part / f"{number}.png", class_map(values), number % 2 == 0
            )
    if names:
        (folder / "classes.txt").write_text("\n".join(["background", *NAMES]))
    return folder


def masks_split(folder: Path) -> Path:
    """`train/images`, `train/masks` … with another ending, and grey saved as colours."""
    for part, count in PARTS.items():
        for number in range(count):
            picture(folder / part / "images" / f"{number}.jpg")
            grey = np.repeat(class_map()[..., None], 3, 2)
            write_mask(folder / part / "masks" / f"{number}_mask.png", grey)
    (folder / "classes.txt").write_text("\n".join(["background", *NAMES]))
    return folder


OBJECTS: list[Callable[[Path], Path]] = [
    *(coco, coco_code, coco_beside, coco_file, voc, voc_without_size, voc_beside),
    *(yolo, yolo_polygons, yolo_named, yolo_classes, yolo_labeled),
]
OUTLINED = [coco, coco_code, coco_beside, coco_file, voc, yolo_polygons]
MASKED = [*OUTLINED, masks_beside, masks_split]


def every_sample(data: DenseDataset) -> list:
    return [data.load(source) for source in [*data.train, *data.val]]
