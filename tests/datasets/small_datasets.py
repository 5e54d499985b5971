"""Small versions of the fifteen public data sets, in their real layouts and formats.

``write_small(root, "SUN397")`` writes four classes of images of a few pixels, with the annotations
of the real data set and, unless ``split_file=False``, its split file. ``write_all(root)`` writes
all data sets.
"""

from __future__ import annotations

import colorsys
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

Row = list  # [relative path, label, class name], as in a split file
Parts = dict[str, list[Row]]

WNIDS = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n01484850": "great white shark",
    "n02096585": "Boston Terrier",
}


def write_small(root: Path, name: str, split_file: bool = True) -> Parts:
    """Write a data set into its folder in ``root``.

    Returns:
        The rows in the order of the annotations, by their parts: ``train``, ``val`` and ``test``;
        ``trainval`` and ``test``; ``test``; or ``all``.
    """
    folder, images, write = _WRITERS[name]
    (root / folder / images).mkdir(parents=True)
    parts = write(root / folder)
    for rows in parts.values():
        for number, (path, label, _) in enumerate(rows):
            _write_image(root / folder / images / path, label, number)
    if split_file and ("all" in parts or "trainval" in parts):
        published = json.dumps(published_split(parts))
        (root / folder / f"split_zhou_{name}.json").write_text(published)
    return parts


def write_all(root: Path) -> None:
    """Write all fifteen data sets, with their split files."""
    for name in _WRITERS:
        write_small(root, name)


def published_split(parts: Parts) -> Parts:
    """Return the split of the split file, without random draws: every seventh row is for val."""
    split: Parts = {"train": [], "val": [], "test": list(parts.get("test", []))}
    for number, row in enumerate(parts.get("trainval", [])):
        split["val" if number % 7 == 3 else "train"].append(row)
    for number, row in enumerate(parts.get("all", [])):
        split["val" if number % 7 == 3 else "test" if number % 3 == 1 else "train"].append(row)
    return split


def _write_image(path: Path, label: int, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = colorsys.hsv_to_rgb(label / 5, 1 - number % 5 / 10, 1 - number % 7 / 20)
    Image.new("RGB", (12, 10), tuple(round(255 * x) for x in colour)).save(path, "JPEG")


def _write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def _rows(folders: list[str], names: list[str], form: str, count: int = 10) -> list[Row]:
    """Return ``count`` rows a class; ``form`` is the path, of folder ``f`` and number ``i``."""
    return [
        [form.format(f=folder, i=i), label, name]
        for label, (folder, name) in enumerate(zip(folders, names, strict=True))
        for i in range(count)
    ]


# ---------------------------------------------------------------------------- class folders
def _caltech(folder: Path) -> Parts:
    for ignored in ("BACKGROUND_Google", "Faces_easy"):
        _write_image(folder / "101_ObjectCategories" / ignored / "image_0001.jpg", 0, 0)
    (folder / "101_ObjectCategories" / "BACKGROUND_Google" / "tmp").touch()
    folders = ["Faces", "Leopards", "crab", "wild_cat"]
    return {"all": _rows(folders, ["face", "leopard", "crab", "wild_cat"], "{f}/image_{i:04}.jpg")}


def _food(folder: Path) -> Parts:
    _write_lines(folder / "meta" / "classes.txt", ["apple_pie"])
    folders = ["apple_pie", "baby_back_ribs", "edamame", "waffles"]
    return {"all": _rows(folders, folders, "{f}/10{i}.jpg")}


def _dtd(folder: Path) -> Parts:
    folders = ["banded", "chequered", "dotted", "zigzagged"]
    return {"all": _rows(folders, folders, "{f}/{f}_00{i:02}.jpg")}


def _eurosat(folder: Path) -> Parts:
    folders = ["AnnualCrop", "Forest", "Highway", "SeaLake"]
    names = ["Annual Crop Land", "Forest", "Highway or Road", "Sea or Lake"]
    # Sorted as text: _10 is before _2.
    return {"all": sorted(_rows(folders, names, "{f}/{f}_{i}.jpg", count=11))}


# ---------------------------------------------------------------------------- annotations
def _pets(folder: Path) -> Parts:
    folders = ["Abyssinian", "american_bulldog", "Bengal", "yorkshire_terrier"]
    names = [name.lower() for name in folders]
    parts = {
        "trainval": _rows(folders, names, "{f}_{i}.jpg")[::-1],
        "test": _rows(folders, names, "{f}_2{i}.jpg", count=4),
    }
    for part, rows in parts.items():
        lines = [f"{path.removesuffix('.jpg')} {label + 1} 1 1" for path, label, _ in rows]
        _write_lines(folder / "annotations" / f"{part}.txt", lines)
    return parts


def _cars(folder: Path) -> Parts:
    names = [
        "AM General Hummer SUV 2000",
        "Acura RL Sedan 2012",
        "Ram C/V Cargo Van Minivan 2012",
        "smart fortwo Convertible 2012",
    ]
    cells = np.empty((1, len(names)), dtype=object)
    cells[0, :] = names
    (folder / "devkit").mkdir()
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": cells})
    shown = [" ".join([name.split(" ")[-1], *name.split(" ")[:-1]]) for name in names]
    parts = {}
    files = {
        "trainval": ("cars_train", "devkit/cars_train_annos.mat", 10),
        "test": ("cars_test", "cars_test_annos_withlabels.mat", 4),
    }
    for part, (images, file, count) in files.items():
        labels = [label for _ in range(count) for label in (2, 0, 3, 1)]
        rows = [[f"{images}/{i:05}.jpg", y, shown[y]] for i, y in enumerate(labels, start=1)]
        box = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"]
        kinds = [*((side, object) for side in box), ("class", object), ("fname", object)]
        annotations = np.empty((1, len(rows)), dtype=kinds)
        for number, (path, label, _) in enumerate(rows):
            for side in box:
                annotations[0, number][side] = np.uint16(number)
            annotations[0, number]["class"] = np.uint8(label + 1)
            annotations[0, number]["fname"] = path.partition("/")[2]
        savemat(folder / file, {"annotations": annotations})
        parts[part] = rows
    return parts


def _flowers(folder: Path) -> Parts:
    names = {"1": "pink primrose", "2": "hard-leaved pocket orchid", "3": "sweet pea", "4": "rose"}
    (folder / "cat_to_name.json").write_text(json.dumps(names))
    labels = [label for label in (3, 1, 4, 2) for _ in range(10)]
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    return {
        "all": [
            [f"image_{i:05}.jpg", label - 1, names[str(label)]]
            for i, label in enumerate(labels, start=1)
        ]
    }


def _aircraft(folder: Path) -> Parts:
    names = ["707-320", "A310", "F/A-18", "Cessna 172"]
    _write_lines(folder / "variants.txt", names)
    parts = {}
    for start, (part, count) in enumerate({"train": 6, "val": 3, "test": 4}.items()):
        rows = _rows(names, names, "{i}.jpg", count)[::-1]
        for number, row in enumerate(rows):
            row[0] = f"{start}{number:06}.jpg"
        lines = [f"{path.removesuffix('.jpg')} {name}" for path, _, name in rows]
        _write_lines(folder / f"images_variant_{part}.txt", lines)
        parts[part] = rows
    return parts


def _sun(folder: Path) -> Parts:
    folders = ["a/abbey", "a/airplane_cabin", "c/church/indoor", "c/church/outdoor"]
    names = ["abbey", "airplane_cabin", "indoor church", "outdoor church"]
    _write_lines(folder / "ClassName.txt", [f"/{name}" for name in folders])
    parts = {
        "trainval": _rows(folders, names, "{f}/sun_a{i}.jpg"),
        "test": _rows(folders, names, "{f}/sun_b{i}.jpg", count=4),
    }
    for part, file in (("trainval", "Training_01.txt"), ("test", "Testing_01.txt")):
        _write_lines(folder / file, [f"/{path}" for path, _, _ in parts[part]])
    return parts


def _ucf(folder: Path) -> Parts:
    actions = ["ApplyEyeMakeup", "Archery", "TaiChi", "YoYo"]
    names = ["Apply_Eye_Makeup", "Archery", "Tai_Chi", "Yo_Yo"]
    lists = folder / "ucfTrainTestlist"
    numbered = [f"{number} {action}" for number, action in enumerate(actions, start=1)]
    _write_lines(lists / "classInd.txt", numbered)
    parts = {
        "trainval": _rows(names, names, "{f}/v_g09_c{i:02}.jpg"),
        "test": _rows(names, names, "{f}/v_g01_c{i:02}.jpg", count=4),
    }
    for part, file in (("trainval", "trainlist01.txt"), ("test", "testlist01.txt")):
        lines = [
            f"{actions[label]}/{Path(path).stem}.avi" + f" {label + 1}" * (part == "trainval")
            for path, label, _ in parts[part]
        ]
        _write_lines(lists / file, lines)
    return parts


# ---------------------------------------------------------------------------- ImageNet
def _classnames(folder: Path) -> None:
    _write_lines(folder / "classnames.txt", [f"{wnid} {name}" for wnid, name in WNIDS.items()])


def _imagenet(folder: Path) -> Parts:
    _classnames(folder)
    return {
        "train": _rows(list(WNIDS), list(WNIDS.values()), "train/{f}/{f}_{i}.JPEG"),
        "test": _rows(list(WNIDS), list(WNIDS.values()), "val/{f}/val_{i:08}.JPEG", count=4),
    }


def _imagenet_v2(folder: Path) -> Parts:
    _classnames(folder)
    return {"test": _rows(["0", "1", "2", "3"], list(WNIDS.values()), "{f}/{i}.jpeg", count=4)}


def _imagenet_sketch(folder: Path) -> Parts:
    _classnames(folder)
    return {"test": _rows(list(WNIDS), list(WNIDS.values()), "{f}/sketch_{i}.JPEG", count=4)}


def _some_of_imagenet(folder: Path) -> Parts:
    _classnames(folder)
    (images,) = (path for path in folder.iterdir() if path.is_dir())
    (images / "README.txt").touch()
    return {"test": _rows(list(WNIDS)[1:], list(WNIDS.values())[1:], "{f}/{i}.jpg", count=4)}


_WRITERS: dict[str, tuple[str, str, Callable[[Path], Parts]]] = {
    "ImageNet": ("imagenet", "images", _imagenet),
    "Caltech101": ("caltech-101", "101_ObjectCategories", _caltech),
    "OxfordPets": ("oxford_pets", "images", _pets),
    "StanfordCars": ("stanford_cars", ".", _cars),
    "OxfordFlowers": ("oxford_flowers", "jpg", _flowers),
    "Food101": ("food-101", "images", _food),
    "FGVCAircraft": ("fgvc_aircraft", "images", _aircraft),
    "SUN397": ("sun397", "SUN397", _sun),
    "DescribableTextures": ("dtd", "images", _dtd),
    "EuroSAT": ("eurosat", "2750", _eurosat),
    "UCF101": ("ucf101", "UCF-101-midframes", _ucf),
    "ImageNetV2": ("imagenetv2", "imagenetv2-matched-frequency-format-val", _imagenet_v2),
    "ImageNetSketch": ("imagenet-sketch", "images", _imagenet_sketch),
    "ImageNetA": ("imagenet-adversarial", "imagenet-a", _some_of_imagenet),
    "ImageNetR": ("imagenet-rendition", "imagenet-r", _some_of_imagenet),
}

NAMES = tuple(_WRITERS)
