"""The fifteen public data sets, written small in their real formats and read end to end."""

from __future__ import annotations

import json
import math
import pickle
import random
import re
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image
from scipy.io import savemat

import train
from anchoropt_plugin import UserError, datasets
from anchoropt_plugin.config.merge import merge_file
from anchoropt_plugin.datasets.table import TABLE
from dassl.config import get_cfg_default
from dassl.data import DataManager
from dassl.data.datasets import DATASET_REGISTRY, Datum, build_dataset
from tests.datasets.small_datasets import published_split, write_small

ROOT = Path(__file__).parents[2]
ROWS = {row.name: row for row in TABLE}
DIVIDED = [row.name for row in TABLE if row.split_file]
TEST_ONLY = ["ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"]

IMAGENET = ["tench", "goldfish", "great white shark", "Boston Terrier"]
CLASSES = {
    "ImageNet": IMAGENET,
    "Caltech101": ["face", "leopard", "crab", "wild_cat"],
    "OxfordPets": ["abyssinian", "american_bulldog", "bengal", "yorkshire_terrier"],
    "StanfordCars": [
        "2000 AM General Hummer SUV",
        "2012 Acura RL Sedan",
        "2012 Ram C/V Cargo Van Minivan",
        "2012 smart fortwo Convertible",
    ],
    "OxfordFlowers": ["pink primrose", "hard-leaved pocket orchid", "sweet pea", "rose"],
    "Food101": ["apple_pie", "baby_back_ribs", "edamame", "waffles"],
    "FGVCAircraft": ["707-320", "A310", "F/A-18", "Cessna 172"],
    "SUN397": ["abbey", "airplane_cabin", "indoor church", "outdoor church"],
    "DescribableTextures": ["banded", "chequered", "dotted", "zigzagged"],
    "EuroSAT": ["Annual Crop Land", "Forest", "Highway or Road", "Sea or Lake"],
    "UCF101": ["Apply_Eye_Makeup", "Archery", "Tai_Chi", "Yo_Yo"],
    "ImageNetV2": IMAGENET,
    "ImageNetSketch": IMAGENET,
    "ImageNetA": IMAGENET[1:],
    "ImageNetR": IMAGENET[1:],
}
AN_IMAGE = {
    "ImageNet": ["imagenet/images/val/n01443537/val_00000002.JPEG", 1, "goldfish"],
    "Caltech101": ["caltech-101/101_ObjectCategories/Leopards/image_0002.jpg", 1, "leopard"],
    "OxfordPets": ["oxford_pets/images/american_bulldog_22.jpg", 1, "american_bulldog"],
    "StanfordCars": ["stanford_cars/cars_test/00002.jpg", 0, "2000 AM General Hummer SUV"],
    "OxfordFlowers": ["oxford_flowers/jpg/image_00002.jpg", 2, "sweet pea"],
    "Food101": ["food-101/images/baby_back_ribs/103.jpg", 1, "baby_back_ribs"],
    "FGVCAircraft": ["fgvc_aircraft/images/2000000.jpg", 3, "Cessna 172"],
    "SUN397": ["sun397/SUN397/c/church/indoor/sun_b1.jpg", 2, "indoor church"],
    "DescribableTextures": ["dtd/images/dotted/dotted_0002.jpg", 2, "dotted"],
    "EuroSAT": ["eurosat/2750/SeaLake/SeaLake_1.jpg", 3, "Sea or Lake"],
    "UCF101": ["ucf101/UCF-101-midframes/Tai_Chi/v_g01_c03.jpg", 2, "Tai_Chi"],
    "ImageNetV2": [
        "imagenetv2/imagenetv2-matched-frequency-format-val/1/2.jpeg", 1, "goldfish",
    ],
    "ImageNetSketch": ["imagenet-sketch/images/n02096585/sketch_0.JPEG", 3, "Boston Terrier"],
    "ImageNetA": ["imagenet-adversarial/imagenet-a/n01443537/3.jpg", 0, "goldfish"],
    "ImageNetR": ["imagenet-rendition/imagenet-r/n02096585/0.jpg", 2, "Boston Terrier"],
}  # fmt: skip


def make_cfg(root, name, shots=-1, seed=1, subsample="all"):
    cfg = get_cfg_default()
    train.extend_cfg(cfg)
    cfg.DATASET.SUBSAMPLE_CLASSES = subsample
    merge_file(cfg, str(ROOT / f"configs/datasets/{ROWS[name].config}.yaml"))
    assert name == cfg.DATASET.NAME
    cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS, cfg.SEED = str(root), shots, seed
    cfg.USE_CUDA = cfg.VERBOSE = False
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.SIZE = (8, 8)
    cfg.INPUT.TRANSFORMS = ("normalize",)
    return cfg


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return for each data set a root with its split file, a root without, and its rows."""
    trees = {}
    for name in ROWS:
        with_split, without = (tmp_path_factory.mktemp(name) for _ in range(2))
        write_small(with_split, name)
        trees[name] = with_split, without, write_small(without, name, split_file=False)
    return trees


def by_label(rows):
    groups = defaultdict(list)
    for row in rows:
        groups[row[1]].append(row)
    return groups


def divided(parts, rng):
    """Divide by the public rules, with random numbers from ``rng``."""
    if "all" in parts:
        train, val, test = [], [], []
        for rows in by_label(parts["all"]).values():
            rows = list(rows)
            rng.shuffle(rows)
            a, b = round(len(rows) * 0.5), round(len(rows) * 0.5) + round(len(rows) * 0.2)
            train, val, test = train + rows[:a], val + rows[a:b], test + rows[b:]
        return train, val, test
    if "trainval" in parts:
        train, val = [], []
        for rows in by_label(parts["trainval"]).values():
            order = list(range(len(rows)))
            rng.shuffle(order)
            n_val = round(len(rows) * 0.2)
            val += [rows[i] for i in order[:n_val]]
            train += [rows[i] for i in order[n_val:]]
        return train, val, parts["test"]
    return parts.get("train", parts["test"]), parts.get("val", []), parts["test"]


def expected(name, parts, shots, seed, subsample):
    rng = random.Random(seed)
    train, val, test = divided(parts, rng)
    if name in TEST_ONLY:
        return test, [], test
    if shots > 0:
        drawn = []
        for items, count in ((train, shots), (val, min(shots, 4))):
            drawn.append([])
            for rows in by_label(items).values():
                drawn[-1] += rng.sample(rows, count) if len(rows) >= count else rows
        train, val = drawn
    if name == "ImageNet":
        val = test
    labels = list(range(len(CLASSES[name])))
    middle = math.ceil(len(labels) / 2)
    chosen = {"all": labels, "base": labels[:middle], "new": labels[middle:]}[subsample]
    return tuple(
        [[path, chosen.index(label), name] for path, label, name in rows if label in chosen]
        for rows in (train, val, test)
    )


def rows_of(dataset):
    images = Path(dataset.image_dir)
    return tuple(
        [[str(Path(x.impath).relative_to(images)), x.label, x.classname] for x in part]
        for part in (dataset.train_x, dataset.val, dataset.test)
    )


def copied(written, tmp_path, name, split_file=False):
    """Return a root and a folder with a copy of a data set, for a test to damage."""
    shutil.copytree(written[name][0 if split_file else 1], tmp_path / "root")
    return tmp_path / "root", tmp_path / "root" / ROWS[name].folder


def refused(root, name, **settings):
    with pytest.raises(UserError) as error:
        build_dataset(make_cfg(root, name, **settings))
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------------------- reading
@pytest.mark.parametrize("name", ROWS)
def test_a_data_set_from_end_to_end(written, name):
    root, _, parts = written[name]
    split = tuple(published_split(parts).values()) if name in DIVIDED else None
    manager = DataManager(make_cfg(root, name))
    dataset = manager.dataset
    assert rows_of(dataset) == (split or expected(name, parts, -1, 1, "all"))
    assert dataset.classnames == CLASSES[name]
    assert manager.num_classes == len(CLASSES[name])
    path, label, classname = AN_IMAGE[name]
    everything = [*dataset.train_x, *dataset.val, *dataset.test]
    assert (str(root / path), label, classname) in {
        (item.impath, item.label, item.classname) for item in everything
    }
    for batch in manager.test_loader:
        assert batch["img"].shape[1:] == (3, 8, 8)


@pytest.mark.parametrize("subsample", ["all", "base", "new"])
@pytest.mark.parametrize(("shots", "seed"), [(-1, 2), (1, 1), (2, 3), (16, 1)])
@pytest.mark.parametrize("name", ROWS)
def test_draws_are_those_of_public_code(written, name, shots, seed, subsample):
    _, root, parts = written[name]
    cfg = make_cfg(root, name, shots, seed, subsample)
    wanted = expected(name, parts, shots, seed, subsample)
    state = random.getstate()
    for _ in range(2):  # drawn, then read from the saved draw
        dataset = build_dataset(cfg)
        assert rows_of(dataset) == wanted
        dataset.write_draw()
    assert random.getstate() == state
    saved = root / ROWS[name].folder / "split_fewshot" / f"shot_{shots}-seed_{seed}.json"
    assert saved.exists() == (shots > 0 and name not in TEST_ONLY)


@pytest.mark.parametrize("name", DIVIDED)
def test_a_read_only_root_gives_the_same_draws(written, name, tmp_path):
    root, folder = copied(written, tmp_path, name)
    shutil.rmtree(folder / "split_fewshot", ignore_errors=True)
    (folder / "split_fewshot").touch()  # blocks the folder even if the test runs as root
    before = sorted(folder.rglob("*"))
    for _ in range(2):
        dataset = build_dataset(make_cfg(root, name, 2, 5))
        assert rows_of(dataset) == expected(name, written[name][2], 2, 5, "all")
        dataset.write_draw()
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", DIVIDED)
def test_a_missing_split_file_gives_a_warning(written, name, capsys):
    root = written[name][1]
    build_dataset(make_cfg(root, name, seed=7))
    printed = capsys.readouterr().out
    assert ROWS[name].split_file in printed and "divided with seed 7" in printed
    message = refused(root, name, seed=-1)
    assert ROWS[name].split_file in message and "give a --seed" in message


# ---------------------------------------------------------------------------- public pickles
def pickled(rows, folder):
    return [Datum(f"{folder}/{path}", label, 0, name) for path, label, name in rows]


def last_of_every_class(rows, shots):
    return [row for i, row in enumerate(rows) if [r[1] for r in rows[i:]].count(row[1]) <= shots]


@pytest.mark.parametrize("name", [name for name in ROWS if name not in TEST_ONLY])
def test_public_few_shot_files_are_read(written, tmp_path, name):
    root, folder = copied(written, tmp_path, name, split_file=True)
    whole = build_dataset(make_cfg(root, name))
    train, val, _ = rows_of(whole)
    drawn = {"train": last_of_every_class(train, 2)}
    if name != "ImageNet":
        drawn["val"] = val[::3]
    elsewhere = (Path("/elsewhere") / ROWS[name].folder / ROWS[name].images).as_posix()
    content = {part: pickled(rows, elsewhere) for part, rows in drawn.items()}
    (folder / "split_fewshot").mkdir(exist_ok=True)
    (folder / "split_fewshot" / "shot_2-seed_1.pkl").write_bytes(pickle.dumps(content))
    train, val, test = rows_of(build_dataset(make_cfg(root, name, 2)))
    assert train == drawn["train"]
    assert val == drawn.get("val", test)


def test_the_public_list_of_imagenet_is_read(written, tmp_path):
    root, folder = copied(written, tmp_path, "ImageNet")
    train, _, test = rows_of(build_dataset(make_cfg(root, "ImageNet")))
    train.reverse()  # another order, as of another file system
    content = {
        part: pickled(rows, "/elsewhere/imagenet/images")
        for part, rows in (("train", train), ("test", test))
    }
    (folder / "preprocessed.pkl").write_bytes(pickle.dumps(content))
    (folder / "classnames.txt").unlink()
    assert rows_of(build_dataset(make_cfg(root, "ImageNet"))) == (train, test, test)
    (folder / "preprocessed.pkl").write_bytes(pickle.dumps({"train": print}))
    assert "preprocessed.pkl" in refused(root, "ImageNet")


# ---------------------------------------------------------------------------- class names
@pytest.mark.parametrize("name", TEST_ONLY)
def test_class_names_are_found_in_the_folder_of_imagenet(written, tmp_path, name):
    root, folder = copied(written, tmp_path, name)
    (root / "imagenet").mkdir()
    (folder / "classnames.txt").rename(root / "imagenet" / "classnames.txt")
    assert build_dataset(make_cfg(root, name)).classnames == CLASSES[name]
    (root / "imagenet" / "classnames.txt").unlink()
    assert f"put it in {folder} or in {root / 'imagenet'}" in refused(root, name)


def test_folders_and_class_names_that_do_not_match(written, tmp_path):
    root, folder = copied(written, tmp_path, "ImageNetV2")
    images = folder / ROWS["ImageNetV2"].images
    (images / "2").rename(images / "n2")
    assert "should have the folders 0 to 3" in refused(root, "ImageNetV2")
    root, folder = copied(written, tmp_path / "again", "ImageNet")
    (folder / "images" / "val" / "n01440764").rename(folder / "images" / "val" / "n9")
    assert "no line for the folder" in refused(root, "ImageNet")
    shutil.rmtree(folder / "images" / "val")
    (folder / "images" / "val").mkdir()
    assert "has no class folders" in refused(root, "ImageNet")


# ---------------------------------------------------------------------------- errors
@pytest.mark.parametrize("name", ROWS)
def test_missing_files_are_listed(written, tmp_path, name):
    row = ROWS[name]
    help_ = f"`python scripts/data.py --root {tmp_path / 'root'}` says where to get it"
    (tmp_path / "root").mkdir()
    message = refused(tmp_path / "root", name)
    assert f"root/{row.folder} of {name} is missing" in message and help_ in message
    (tmp_path / "root").rmdir()
    root, folder = copied(written, tmp_path, name)
    for file in row.annotations:
        (folder / file).unlink()
    if row.annotations:
        message = refused(root, name)
        assert f"lacks {row.split_file}" in message and help_ in message
        assert ", ".join(row.annotations) in message
    if row.images != ".":
        shutil.rmtree(folder / row.images)
        assert f"{row.folder}/{row.images} of {name} is missing" in refused(root, name)


@pytest.mark.parametrize("name", DIVIDED)
@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "linked/passwd"])
def test_a_split_cannot_lead_out_of_the_folder(written, tmp_path, name, path):
    root, folder = copied(written, tmp_path, name, split_file=True)
    (folder / ROWS[name].images / "linked").symlink_to("/etc")
    split = json.loads((folder / ROWS[name].split_file).read_text())
    split["test"][0][0] = path
    (folder / ROWS[name].split_file).write_text(json.dumps(split))
    assert "out of" in refused(root, name)


@pytest.mark.parametrize("name", ["ImageNet", "StanfordCars"])
def test_folders_of_the_layout_may_be_links(written, tmp_path, name):
    root, folder = copied(written, tmp_path, name, split_file=True)
    wanted = rows_of(build_dataset(make_cfg(root, name)))
    for number, part in enumerate(ROWS[name].image_folders):
        (folder / ROWS[name].images / part).rename(tmp_path / str(number))
        (folder / ROWS[name].images / part).symlink_to(tmp_path / str(number))
    assert rows_of(build_dataset(make_cfg(root, name))) == wanted


@pytest.mark.parametrize("name", DIVIDED)
def test_missing_images_are_counted(written, tmp_path, name):
    root, folder = copied(written, tmp_path, name, split_file=True)
    lost = rows_of(build_dataset(make_cfg(root, name)))[0][:5]
    for path, _, _ in lost:
        (folder / ROWS[name].images / path).unlink()
    message = refused(root, name)
    assert "5 of " in message
    assert [path in message for path, _, _ in lost] == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("name", "file", "line", "message"),
    [
        ("OxfordPets", "annotations/trainval.txt", "Bengal_3 x 1 1", "not 'image label species"),
        ("OxfordPets", "annotations/test.txt", "Bengal_3", "line 1 is 'Bengal_3'"),
        ("OxfordPets", "annotations/test.txt", "Bengal_3 9 1 1", "label 8 .*has no image"),
        ("FGVCAircraft", "images_variant_val.txt", "00001 747", "variants.txt has no class '747'"),
        ("SUN397", "Training_01.txt", "/z/zoo/1.jpg", "ClassName.txt has no class 'z/zoo'"),
        ("SUN397", "Testing_01.txt", "//etc/passwd", "no class '/etc'"),
        ("UCF101", "ucfTrainTestlist/classInd.txt", "Archery", "not 'label action'"),
        ("UCF101", "ucfTrainTestlist/trainlist01.txt", "x.avi 1", "not 'action/video.avi'"),
        ("UCF101", "ucfTrainTestlist/testlist01.txt", "Tennis/x.avi", "no class 'Tennis'"),
        ("OxfordFlowers", "cat_to_name.json", "[]", 'is not {"1"'),
        ("OxfordFlowers", "cat_to_name.json", "{}", "cat_to_name.json has no class '3'"),
        ("OxfordFlowers", "imagelabels.mat", "text", "cannot read .*imagelabels.mat"),
        ("StanfordCars", "devkit/cars_meta.mat", "text", "cannot read .*cars_meta.mat"),
    ],
)
def test_malformed_annotations(written, tmp_path, name, file, line, message):
    root, folder = copied(written, tmp_path, name)
    (folder / file).write_text(f"{line}\n")
    error = refused(root, name)
    assert re.search(message, error), error


def test_matlab_files_with_other_content(written, tmp_path):
    root, folder = copied(written, tmp_path, "StanfordCars")
    meta, train = folder / "devkit" / "cars_meta.mat", folder / "devkit" / "cars_train_annos.mat"
    savemat(meta, {"class_names": ["A Car 2000"]})
    assert "classes beyond the 1 of" in refused(root, "StanfordCars")
    savemat(train, {"annotations": [1, 2]})
    assert "no fname and class" in refused(root, "StanfordCars")
    savemat(train, {"other": [1]})
    assert "has no variable 'annotations'" in refused(root, "StanfordCars")
    root, folder = copied(written, tmp_path / "again", "OxfordFlowers")
    savemat(folder / "imagelabels.mat", {"labels": "abc"})
    assert "the labels are not numbers" in refused(root, "OxfordFlowers")


@pytest.mark.parametrize(("name", "message"), [("EuroSAT", "50/20/30"), ("UCF101", "a fifth")])
def test_too_few_images_to_divide(tmp_path, name, message):
    parts = write_small(tmp_path, name, split_file=False)
    folder = tmp_path / ROWS[name].folder
    if name == "EuroSAT":
        for path, _, _ in parts["all"][2:11]:
            (folder / ROWS[name].images / path).unlink()
    else:
        lines = (folder / "ucfTrainTestlist" / "trainlist01.txt").read_text().splitlines(True)
        (folder / "ucfTrainTestlist" / "trainlist01.txt").write_text("".join(lines[8:]))
    error = refused(tmp_path, name)
    assert "has 2 images" in error and message in error


def test_a_truncated_image_is_named(written, tmp_path):
    root, _ = copied(written, tmp_path, "Food101", split_file=True)
    manager = DataManager(make_cfg(root, "Food101"))
    broken = Path(manager.dataset.test[0].impath)
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(UserError, match=broken.name):
        list(manager.test_loader)


def test_the_table():
    assert list(CLASSES) == list(ROWS)
    assert len(TABLE) == 15
    for row in TABLE:
        text = (ROOT / f"configs/datasets/{row.config}.yaml").read_text()
        assert f'NAME: "{row.name}"' in text


def test_the_table_in_the_documentation():
    lines = (ROOT / "docs" / "datasets.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| `DATASET.NAME`")) + 2
    documented = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines[start : start + len(TABLE)]
    ]
    assert documented == [
        [row.name, row.config, row.folder, row.images, row.split_file, row.classes] for row in TABLE
    ]


def test_the_documented_data_set_of_a_user(tmp_path):
    text = (ROOT / "docs" / "datasets.md").read_text()
    (code,) = (
        code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "Birds" in code
    )
    package = datasets.__name__
    names = {"__name__": f"{package}.birds", "__package__": package}
    exec(code, names)  # trusted: the documentation of this repository
    try:
        split = {
            part: [
                [f"{part}_{name}.jpg", label, name] for label, name in enumerate(("crow", "owl"))
            ]
            for part in ("train", "val", "test")
        }
        images = tmp_path / "birds" / names["Birds"].images
        images.mkdir(parents=True)
        for path, *_ in (row for part in split.values() for row in part):
            Image.new("RGB", (4, 4)).save(images / path)
        (tmp_path / "birds" / "split.json").write_text(json.dumps(split))
        cfg = make_cfg(tmp_path, "ImageNet")
        cfg.DATASET.NAME = "Birds"
        assert rows_of(build_dataset(cfg)) == tuple(split.values())
    finally:
        del DATASET_REGISTRY._obj_map["Birds"]
