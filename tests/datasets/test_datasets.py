"""Data sets: splits, few-shot draws against plain ``random``, halves of classes, own images."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from anchoropt_plugin import UserError, datasets
from anchoropt_plugin.datasets.image_folder import ImageFolder
from anchoropt_plugin.datasets.split_dataset import SplitDataset
from dassl.config import get_cfg_default
from dassl.data import DatasetWrapper
from dassl.data.datasets import DATASET_REGISTRY, Datum, build_dataset

datasets.register()

# The first items of labels are in the order 2, 0, 1; class 1 has few images.
CLASSES = {2: ("hairy_dog", 6), 0: ("cat", 5), 1: ("bird", 2)}


class Pets(SplitDataset):
    folder = "pets"
    split_file = "split_zhou_Pets.json"


def make_cfg(root, shots=-1, seed=1, subsample="all"):
    return SimpleNamespace(
        SEED=seed,
        VERBOSE=False,
        DATASET=SimpleNamespace(
            ROOT=str(root), NAME="Pets", NUM_SHOTS=shots, SUBSAMPLE_CLASSES=subsample
        ),
    )


def add_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


@pytest.fixture
def pets(tmp_path):
    """Write a data set in the public layout; ``split`` is the content of its split file."""
    split = {"train": [], "val": [], "test": []}
    for part, items in split.items():
        for label, (name, count) in CLASSES.items():
            for i in range(count):
                items.append([f"{name}/{part}_{i}.jpg", label, name])
                add_image(tmp_path / "pets" / "images" / items[-1][0])
    path = tmp_path / "pets" / Pets.split_file
    path.write_text(json.dumps(split))
    return SimpleNamespace(root=tmp_path, folder=tmp_path / "pets", path=path, split=split)


def rows(dataset, part):
    """Return a part of a data set in the form of the split file."""
    images = f"{dataset.image_dir}/"
    return [
        [item.impath.removeprefix(images), item.label, item.classname]
        for item in getattr(dataset, part)
    ]


def test_the_whole_data_set(pets):
    dataset = Pets(make_cfg(pets.root))
    for part, name in (("train_x", "train"), ("val", "val"), ("test", "test")):
        assert rows(dataset, part) == pets.split[name]
    assert dataset.classnames == ["cat", "bird", "hairy_dog"]
    assert not (pets.folder / "split_fewshot").exists()


def draw(items, shots):
    """Draw by the public rule, with the global ``random``."""
    drawn = []
    for label in CLASSES:  # in the order of their first items
        of_label = [item for item in items if item[1] == label]
        drawn += random.sample(of_label, shots) if len(of_label) >= shots else of_label
    return drawn


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("shots", [1, 2, 5])
def test_few_shots(pets, shots, seed):
    random.seed(seed)
    train = draw(pets.split["train"], shots)
    val = draw(pets.split["val"], min(shots, 4))
    state = random.getstate()
    for time in range(2):  # drawn, then read from the file
        dataset = Pets(make_cfg(pets.root, shots, seed))
        assert rows(dataset, "train_x") == train
        assert rows(dataset, "val") == val
        assert rows(dataset, "test") == pets.split["test"]
        assert (pets.folder / "split_fewshot").exists() == bool(time)
        dataset.write_draw()
    assert random.getstate() == state, "the global generator is not touched"
    (cached,) = (pets.folder / "split_fewshot").iterdir()
    assert cached.name == f"shot_{shots}-seed_{seed}.json"
    assert json.loads(cached.read_text())["train"] == train


def test_a_saved_draw_of_more_images_is_refused(pets):
    Pets(make_cfg(pets.root, shots=2)).write_draw()
    folder = pets.folder / "split_fewshot"
    (folder / "shot_2-seed_1.json").rename(folder / "shot_1-seed_1.json")
    with pytest.raises(UserError, match=r"2 images of the class .*, more than the 1 of DATASET"):
        Pets(make_cfg(pets.root, shots=1))


def test_the_saved_draw_is_used_until_the_split_changes(pets, capsys):
    cfg = make_cfg(pets.root, shots=1)
    Pets(cfg).write_draw()
    path = pets.folder / "split_fewshot" / "shot_1-seed_1.json"
    saved = json.loads(path.read_text())
    saved["train"] = [pets.split["train"][i] for i in (0, 6, 11)]
    path.write_text(json.dumps(saved))
    assert rows(Pets(cfg), "train_x") == saved["train"]

    pets.split["train"].pop()
    pets.path.write_text(json.dumps(pets.split))
    random.seed(1)
    assert rows(Pets(cfg), "train_x") == draw(pets.split["train"], 1)
    assert "drawn from another split" in capsys.readouterr().out


def test_without_a_seed_no_draw_is_saved(pets):
    data = [Pets(make_cfg(pets.root, shots=2, seed=-1)) for _ in range(9)]
    assert len({str(rows(one, "train_x")) for one in data}) > 1
    data[0].write_draw()
    assert not (pets.folder / "split_fewshot").exists()


def test_a_read_only_data_set(pets):
    (pets.folder / "split_fewshot").touch()  # blocks the folder even if the test runs as root
    dataset = Pets(make_cfg(pets.root, shots=1))
    dataset.write_draw()
    random.seed(1)
    assert rows(dataset, "train_x") == draw(pets.split["train"], 1)


@pytest.fixture
def write_public_file(pets):
    """Return a function that writes ``shot_1-seed_1.pkl`` as public code elsewhere does."""

    def write(paths):
        lists = {
            part: [Datum(path, label, 0, name) for path, label, name in items]
            for part, items in paths.items()
        }
        file = pets.folder / "split_fewshot" / "shot_1-seed_1.pkl"
        file.parent.mkdir()
        file.write_bytes(pickle.dumps(lists, protocol=pickle.HIGHEST_PROTOCOL))

    return write


def test_a_public_few_shot_file_comes_first(pets, write_public_file):
    chosen = [pets.split["train"][i] for i in (3, 8, 12)]
    there = [[f"/elsewhere/pets/images/{path}", label, name] for path, label, name in chosen]
    write_public_file({"train": there})  # ImageNet's have no "val"
    dataset = Pets(make_cfg(pets.root, shots=1))
    assert rows(dataset, "train_x") == chosen
    assert rows(dataset, "val") == pets.split["val"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/elsewhere/cats/1.jpg", "not in a folder pets/images"),
        ("/elsewhere/pets/images/../secret.jpg", r"secret\.jpg .* not in the split's part train"),
        ("/elsewhere/pets/images/cat/none.jpg", r"none\.jpg .* not in the split's part train"),
        ("/elsewhere/pets/images/cat/test_0.jpg", r"test_0\.jpg .* not in the split's part train"),
        (
            "/elsewhere/pets/images/bird/train_0.jpg",
            "with label 0 is not in the split",
        ),
    ],
)
def test_a_public_few_shot_file_of_other_images(pets, write_public_file, path, message):
    drawn = [[path, 0, "cat"], *([f"/a/pets/images/{p}", y, c] for p, y, c in pets.split["train"])]
    write_public_file({"train": drawn})
    with pytest.raises(UserError, match=message):
        Pets(make_cfg(pets.root, shots=1))


def test_a_few_shot_file_with_other_names(pets, write_public_file):
    drawn = [[f"/a/pets/images/{path}", label, "x"] for path, label, _ in pets.split["train"]]
    write_public_file({"train": drawn})
    with pytest.raises(UserError, match=r"shot_1-seed_1\.pkl: label 2 has two names, 'x' and"):
        Pets(make_cfg(pets.root, shots=1))


def test_a_saved_draw_that_was_edited(pets):
    cfg = make_cfg(pets.root, shots=1)
    Pets(cfg).write_draw()
    path = pets.folder / "split_fewshot" / "shot_1-seed_1.json"
    saved = json.loads(path.read_text())
    saved["train"][0] = pets.split["test"][0]
    path.write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"shot_1-seed_1\.json: .* not in the split's part train"):
        Pets(cfg)


@pytest.fixture
def four_classes(pets):
    """Add a class, so that each half has two."""
    for part, items in pets.split.items():
        items.append([f"owl/{part}.jpg", 3, "owl"])
        add_image(pets.folder / "images" / items[-1][0])
    pets.path.write_text(json.dumps(pets.split))
    return pets


@pytest.mark.parametrize(
    ("half", "chosen"),
    [
        ("base", {0: (0, "cat"), 1: (1, "bird")}),
        ("new", {2: (0, "hairy_dog"), 3: (1, "owl")}),
    ],
)
def test_halves_of_the_classes(four_classes, half, chosen):
    pets = four_classes
    dataset = Pets(make_cfg(pets.root, subsample=half))
    for part, name in (("train_x", "train"), ("val", "val"), ("test", "test")):
        expected = [
            [path, *chosen[label]] for path, label, _ in pets.split[name] if label in chosen
        ]
        assert rows(dataset, part) == expected
    assert dataset.classnames == [name for _, name in chosen.values()]


def test_shots_are_drawn_before_the_half_is_taken(four_classes):
    pets = four_classes
    random.seed(1)
    drawn = [path for path, label, _ in draw(pets.split["train"], 2) if label == 2]
    drawn.append("owl/train.jpg")
    dataset = Pets(make_cfg(pets.root, shots=2, subsample="new"))
    assert [row[0] for row in rows(dataset, "train_x")] == drawn


@pytest.mark.parametrize(
    ("n_classes", "refused", "says"),
    [
        (1, ("all", "base", "new"), "the data set has one class"),
        (2, ("base", "new"), "leaves one of 2 classes, which each image would have: choose all"),
        (3, ("new",), "SUBSAMPLE_CLASSES new leaves one of 3 classes"),
        (4, (), None),
    ],
)
def test_a_single_class_is_refused(four_classes, n_classes, refused, says):
    """Its accuracy would be 100 %."""
    pets = four_classes
    parts = {part: [row for row in pets.split[part] if row[1] < n_classes] for part in pets.split}
    pets.path.write_text(json.dumps(parts))
    for which in ("all", "base", "new"):
        expected = pytest.raises(UserError, match=says)
        with expected if which in refused else contextlib.nullcontext():
            assert len(Pets(make_cfg(pets.root, subsample=which)).classnames) > 1


def test_an_unknown_half(pets):
    with pytest.raises(UserError, match=r"'bases' \(did you mean 'base'\?\)"):
        Pets(make_cfg(pets.root, subsample="bases"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["train"].append(["cat/x.jpg", 0, "dog"]), "label 0 has two names"),
        (lambda s: s["test"].append(["cat/x.jpg", 0, "dog"]), "label 0 has two names"),
        (lambda s: s["val"].append(["cat/x.jpg", 0, "dog"]), "label 0 has two names"),
        (lambda s: s["val"].append(["cat/x.jpg", "²", "dog"]), r"val\[13\] is "),
        (lambda s: s["val"].append(["x.jpg", "9" * 5000, "dog"]), r"val\[13\] is "),
        (lambda s: s["train"].append(["x.jpg", 30000000, "emu"]), "label 3 has no image"),
        (lambda s: s["val"].append(["a\0.jpg", 0, "cat"]), r"'a\\x00.jpg' .* cannot be a file"),
        (lambda s: s["val"].append(["\ud800/a", 0, "cat"]), r"cannot be a file"),
        (lambda s: s["train"].append(["x.jpg", 3, "\ud800"]), "name of label 3, .*control"),
        (lambda s: s["train"].append(["x.jpg", 3, "a\nb"]), "name of label 3, .*control"),
        (lambda s: s["train"].append(["x.jpg", 3, " "]), "name of label 3, ' ', is empty"),
        (lambda s: s["train"].append(["x.jpg", 3, "_"]), "name of label 3, '_', is empty"),
        (lambda s: s["train"].append(["x.jpg", 3, "a <|EndOfText|>"]), "CLIP's own marks"),
        (
            lambda s: s["train"].append(["x.jpg", 3, "Hairy  Dog"]),
            "labels 2 and 3 are named 'hairy_dog' and 'Hairy  Dog'",
        ),
        (lambda s: s["test"].append(["x.jpg", 3, "fish"]), r"label 3 \('fish'\) has no image"),
        (lambda s: s["train"].append(["x.jpg", 4, "emu"]), "label 3 has no image for training"),
        (lambda s: s["train"].append(["x.jpg", "3a", "emu"]), r"train\[13\] is .*\"3a\""),
        (lambda s: s["val"].append(["x.jpg", -1, "emu"]), r"val\[13\]"),
        (lambda s: s["val"].append("x.jpg"), r"val\[13\] is \"x\.jpg\", not \[relative path"),
        (lambda s: s["train"].clear(), "no images for training"),
        (lambda s: s["test"].clear(), "no images for test"),
        (lambda s: s.pop("test"), r'a split is \{"train"'),
        (lambda s: s.update(val=3), "val is not a list"),
        (
            lambda s: s["val"].append(["cat/gone.jpg", 0, "cat"]),
            r"1 of 40 images .* cat/gone\.jpg",
        ),
        (lambda s: s["val"].append(["/etc/passwd", 0, "cat"]), "/etc/passwd' .*leads out of"),
        (lambda s: s["val"].append(["cat/../../x.jpg", 0, "cat"]), r"leads out of"),
    ],
)
def test_malformed_splits(pets, change, message):
    change(pets.split)
    pets.path.write_text(json.dumps(pets.split))
    with pytest.raises(UserError) as caught:
        Pets(make_cfg(pets.root))
    assert caught.match(message.replace(" cat/", ".*cat/"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("link", ["file", "folder"])
def test_symlinks_must_stay_in_the_image_folder(pets, tmp_path, link):
    images = pets.folder / "images"
    pets.split["val"].append(["linked/1.jpg", 0, "cat"])
    pets.path.write_text(json.dumps(pets.split))
    add_image(tmp_path / "outside" / "1.jpg")
    if link == "folder":
        (images / "linked").symlink_to(tmp_path / "outside")
    else:
        (images / "linked").mkdir()
        (images / "linked" / "1.jpg").symlink_to(tmp_path / "outside" / "1.jpg")
    with pytest.raises(UserError, match="symlink out of"):
        Pets(make_cfg(pets.root))

    # Links of the data set itself, and of an image to another image, are fine.
    (images / "linked" / "1.jpg").unlink() if link == "file" else (images / "linked").unlink()
    (images / "linked").mkdir(exist_ok=True)
    (images / "linked" / "1.jpg").symlink_to(images / "cat" / "val_0.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "pets").symlink_to(pets.folder)
    assert len(Pets(make_cfg(tmp_path / "root")).val) == 14


def test_missing_folders_and_files(pets, tmp_path):
    with pytest.raises(UserError, match=r"DATASET\.ROOT is not given"):
        Pets(make_cfg(""))
    with pytest.raises(UserError, match=r"the data set folder .*nowhere/pets is missing"):
        Pets(make_cfg(tmp_path / "nowhere"))
    pets.path.write_text('{"train": [\n')
    with pytest.raises(UserError, match=r"split_zhou_Pets\.json, line 2: not valid json"):
        Pets(make_cfg(pets.root))
    pets.path.unlink()
    with pytest.raises(UserError, match=r"cannot open .*split_zhou_Pets\.json"):
        Pets(make_cfg(pets.root))


# ---------------------------------------------------------------------------- ImageFolder
def folders(root, counts, start=0):
    for name, count in counts.items():
        for i in range(start, start + count):
            add_image(root / name / f"{i}.png")


def test_class_folders_are_split_50_20_30(tmp_path):
    folders(tmp_path, {"red_fox": 10, "eel": 4, "split_fewshot": 0})
    (tmp_path / ".cache").mkdir()
    (tmp_path / "eel" / "notes.txt").touch()
    dataset = ImageFolder(make_cfg(tmp_path))
    assert dataset.classnames == ["eel", "red fox"]
    sizes = [[row[1] for row in rows(dataset, p)].count(1) for p in ("train_x", "val", "test")]
    assert sizes == [5, 2, 3]
    everything = [row[0] for part in ("train_x", "val", "test") for row in rows(dataset, part)]
    assert len(everything) == len(set(everything)) == 14

    # The same images in every run, for any seed, and with another class added.
    folders(tmp_path, {"ape": 5})
    again = ImageFolder(make_cfg(tmp_path, seed=9))
    train = {row[0] for row in rows(again, "train_x") if row[1] > 0}
    assert train == {row[0] for row in rows(dataset, "train_x")}


def test_the_few_shot_folder_is_not_a_class(tmp_path):
    folders(tmp_path, {"a": 8, "b": 8})
    for _ in range(2):
        dataset = ImageFolder(make_cfg(tmp_path, shots=2))
        assert dataset.classnames == ["a", "b"]
        assert len(dataset.train_x) == 4
        dataset.write_draw()
    assert (tmp_path / "split_fewshot" / "shot_2-seed_1.json").is_file()


def test_train_and_test_folders(tmp_path):
    folders(tmp_path / "train", {"a": 2, "b": 1})
    folders(tmp_path / "test", {"b": 3})
    dataset = ImageFolder(make_cfg(tmp_path))
    assert rows(dataset, "train_x") == [
        ["train/a/0.png", 0, "a"], ["train/a/1.png", 0, "a"], ["train/b/0.png", 1, "b"],
    ]  # fmt: skip
    assert [row[1] for row in rows(dataset, "test")] == [1, 1, 1]
    assert not dataset.val
    folders(tmp_path / "val", {"a": 1})
    assert rows(ImageFolder(make_cfg(tmp_path)), "val") == [["val/a/0.png", 0, "a"]]


@pytest.mark.parametrize(("name", "images"), [("split.json", "."), ("split_own.json", "images")])
def test_a_split_file(tmp_path, name, images):
    folders(tmp_path / images, {"a": 2, "b": 2})
    names = [("a", 0, "first"), ("b", 1, "second")]
    split = {
        part: [[f"{folder}/{number}.png", *of] for folder, *of in names]
        for number, part in enumerate(("train", "test"))
    }
    (tmp_path / name).write_text(json.dumps(split))
    dataset = ImageFolder(make_cfg(tmp_path))
    assert rows(dataset, "test") == split["test"]
    assert dataset.classnames == ["first", "second"]


def test_class_names_from_a_file(tmp_path):
    folders(tmp_path, {"n01": 4, "n02": 4})
    names = tmp_path / "classnames.txt"
    names.write_text("n02 great white shark\nn01 tench\n\n")
    assert ImageFolder(make_cfg(tmp_path)).classnames == ["tench", "great white shark"]
    names.write_text("n02 shark\nn1 tench\n")
    with pytest.raises(UserError, match=r"no line for n01 in .*; add one; there is no folder n1$"):
        ImageFolder(make_cfg(tmp_path))
    names.write_text("n02 shark\nn01\n")
    with pytest.raises(UserError, match=r"classnames\.txt, line 2: .* no class name after 'n01'"):
        ImageFolder(make_cfg(tmp_path))


@pytest.mark.parametrize("between", [" ", "\t", ",", ", ", "\t\t", " , "])
def test_what_separates_a_folder_from_its_class_name(tmp_path, between):
    folders(tmp_path, {"n01": 4, "red cat, 2": 4})
    lines = ("n01", "great white shark, Carcharodon"), ("red cat, 2", "lynx"), ("n03", "no folder")
    (tmp_path / "classnames.txt").write_text("\n".join(map(between.join, lines)))
    names = ImageFolder(make_cfg(tmp_path)).classnames
    assert names == ["great white shark, Carcharodon", "lynx"]


def test_a_folder_has_one_line_in_classnames(tmp_path):
    folders(tmp_path, {"n01": 4, "n02": 4})
    (tmp_path / "classnames.txt").write_text("n01 tench\nn02 shark\nn01 ray\n")
    with pytest.raises(UserError, match=r"line 3: the folder 'n01' has two names, 'tench' and"):
        ImageFolder(make_cfg(tmp_path))


def test_a_folder_with_a_blank_in_classnames(tmp_path):
    folders(tmp_path, {"red": 4, "red cat": 4, "red cat 2": 4})
    names = tmp_path / "classnames.txt"
    names.write_text("red cat 2 tiger\nred cat lynx\nred fox\nblue whale\n")
    assert ImageFolder(make_cfg(tmp_path)).classnames == ["fox", "lynx", "tiger"]
    names.write_bytes("red cat 2 tiger\nred cat lynx\nred café\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"classnames\.txt is not text in UTF-8"):
        ImageFolder(make_cfg(tmp_path))


@pytest.mark.parametrize("part", ["", "train"])
@pytest.mark.parametrize(
    "names", ["", "red_cat Cat\nred cat  cat\n", "red_cat F-16\nred cat f - 16\n"]
)
def test_two_folders_of_one_class_name(tmp_path, part, names):
    folders(tmp_path / part, {"red_cat": 4, "red cat": 4})
    folders(tmp_path / "test", {"red_cat": 4} if part else {})
    if names:
        (tmp_path / "classnames.txt").write_text(names)
    with pytest.raises(UserError, match=r"'red cat' and 'red_cat' in .* have the same"):
        ImageFolder(make_cfg(tmp_path))


def test_images_of_all_formats_and_in_sub_folders(tmp_path, capsys):
    folders(tmp_path, {"fox": 3, "fox/day/one": 2, "eel": 5})
    for name in ("a.jfif", "b.WEBP", "c.bmp", "day/d.jp2"):
        add_image(tmp_path / "fox" / name)
    for name in ("fox/x.heic", "fox/day/y.heic", "eel/notes.txt", ".hidden.txt", "fox/no_suffix"):
        (tmp_path / name).touch()
    add_image(tmp_path / "loose.png")
    (tmp_path / "classnames.txt").write_text("fox fox\neel eel\n")
    for _ in range(2):
        dataset = ImageFolder(make_cfg(tmp_path, shots=1))
        assert (
            f"Note: 5 file(s) in {tmp_path} are not used: "
            "2 .heic (fox/day/y.heic, fox/x.heic); 1 .png (loose.png); 1 .txt (eel/notes.txt); "
            "1 no suffix (fox/no_suffix)\n"
        ) in capsys.readouterr().out
    dataset = ImageFolder(make_cfg(tmp_path))
    found = {row[0] for part in ("train_x", "val", "test") for row in rows(dataset, part)}
    of_fox = {"0.png", "1.png", "2.png", "a.jfif", "b.WEBP", "c.bmp", "day/d.jp2"}
    of_fox |= {"day/one/0.png", "day/one/1.png"}
    assert {path for path in found if path.startswith("fox/")} == {f"fox/{name}" for name in of_fox}


def test_a_class_folder_may_be_a_link(tmp_path, capsys):
    folders(tmp_path, {"a": 4, ".hidden/b": 4})
    (tmp_path / "b").symlink_to(tmp_path / ".hidden/b")
    assert ImageFolder(make_cfg(tmp_path)).classnames == ["a", "b"]
    assert "not used" not in capsys.readouterr().out


def test_all_damaged_images_are_named_before_a_training(tmp_path):
    folders(tmp_path, {"a": 9, "b": 9})
    for path in ("a/2.png", "b/0.png", "b/8.png"):
        (tmp_path / path).write_bytes(b"x")
    with pytest.raises(UserError, match="3 of 18 images cannot be read") as error:
        ImageFolder(make_cfg(tmp_path))
    assert all(f"{tmp_path}/{path}" in str(error.value) for path in ("a/2.png", "b/0.png"))


def test_images_of_several_frames_are_told(tmp_path, capsys):
    folders(tmp_path, {"a": 4, "b": 4})
    frames = [Image.new("L", (4, 4), value) for value in (0, 255)]
    frames[0].save(tmp_path / "a/9.gif", save_all=True, append_images=frames[1:])
    ImageFolder(make_cfg(tmp_path))
    told = f"1 image(s) have several frames or pages, the first is read: {tmp_path}/a/9.gif"
    assert f"Note: {told}\n" in capsys.readouterr().out


def test_own_images_are_turned_as_the_camera_was_held(tmp_path):
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[274] = 3  # upside down
    for name in "ab":
        for number in range(4):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png", exif=exif)
    cfg = get_cfg_default()
    cfg.DATASET.ROOT, cfg.INPUT.NO_TRANSFORM = str(tmp_path), True
    for is_train in (True, False):
        data = DatasetWrapper(cfg, ImageFolder(cfg).train_x, is_train=is_train)
        assert (np.asarray(data[0]["img"]) == pixels[::-1]).all()
    # Public data sets are read as public code reads them.
    items = [Datum(str(tmp_path / "a" / "0.png"))]
    assert (np.asarray(DatasetWrapper(cfg, items)[0]["img"]) == pixels).all()


@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev"])
def test_names_of_the_folders_of_a_split(tmp_path, train, val):
    folders(tmp_path / train, {"a": 2, "b": 1})
    folders(tmp_path / "test", {"b": 3})
    folders(tmp_path / val, {"a": 1, "b": 2})
    dataset = ImageFolder(make_cfg(tmp_path))
    assert [row[0] for row in rows(dataset, "val")] == [
        f"{val}/a/0.png", f"{val}/b/0.png", f"{val}/b/1.png",
    ]  # fmt: skip
    assert (len(dataset.train_x), len(dataset.test)) == (3, 3)
    folders(tmp_path / "VALID" if val != "valid" else tmp_path / "dev", {"a": 1})
    with pytest.raises(UserError, match=r"two folders for val, .* join them, or rename one"):
        ImageFolder(make_cfg(tmp_path))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("test", "val"), "a folder test but no folder train"),
        (("Train", "cat"), "a folder Train but no folder test"),
        (("dev", "cat"), "a folder dev but no folder train"),
        (("images",), "has one class, 'images'; make a folder for each class"),
    ],
)
def test_folders_that_may_be_parts_of_a_split(tmp_path, names, message):
    folders(tmp_path, {f"{name}/{of}": 4 for name in names for of in "ab"})
    with pytest.raises(UserError, match=message):
        ImageFolder(make_cfg(tmp_path))


@pytest.mark.parametrize(
    ("classes", "root", "message"),
    [
        (("train/a", "train/b", "Test/a"), "train", r"own/train and .*own/Test are parts of one"),
        (("train/a", "train/b", "valid/b"), "train", "are parts of one split: give --root .*own$"),
        (("images/a", "images/b"), "images", r"has its split in .*own/split_1\.json: give --root"),
        (("a/train/x", "a/test/x", "b"), "", r"own/a has folders for train and test"),
        (("images/a", "b"), "..", r"own has a split, split_1\.json: give .* another data set"),
        (("train/a", "train/b", "test/unlabelled"), "train", None),
        (("train/a", "train/b", "my_test/a"), "train", None),
        (("dev/a", "dev/b", "other/a"), "dev", None),
        (("a/train", "b/train"), "", None),
    ],
)
def test_an_image_folder_that_is_one_level_off(tmp_path, classes, root, message):
    own = tmp_path / "root" / "own"
    folders(own, dict.fromkeys(classes, 4))
    if "split" in (message or "") and "json" in message:
        (own / "split_1.json").touch()
    with pytest.raises(UserError, match=message) if message else contextlib.nullcontext():
        ImageFolder(make_cfg((own / root).resolve()))


def test_class_folders_without_images_of_their_own_are_told(tmp_path, capsys):
    folders(tmp_path, {"birds/crow": 4, "birds/owl": 4, "cars/vw": 4})
    assert ImageFolder(make_cfg(tmp_path)).classnames == ["birds", "cars"]
    told = f"all images in {tmp_path} are in sub-folders of the class folders, such as birds/crow: "
    assert f"Note: {told}'birds' is the class\n" in capsys.readouterr().out
    folders(tmp_path, {"cars": 1})
    ImageFolder(make_cfg(tmp_path))
    assert "sub-folders" not in capsys.readouterr().out


def test_faults_in_own_image_folders(tmp_path):
    def refused(message):
        with pytest.raises(UserError, match=message):
            ImageFolder(make_cfg(tmp_path / "own"))

    refused("the image folder .*own is missing")
    (tmp_path / "own").mkdir()
    refused("has no class folders")
    folders(tmp_path / "own", {"a": 3})
    refused("own/a needs at least 4 images, but has 3")
    (tmp_path / "own" / "b").mkdir()
    folders(tmp_path / "own", {"a": 1}, start=3)
    refused("own/b has no images")
    folders(tmp_path / "own" / "train", {"a": 1})
    refused("no folder test")
    folders(tmp_path / "own" / "test", {"c": 1})
    refused("own/test/c has no counterpart")
    for name in ("split_1.json", "split_2.json"):
        (tmp_path / "own" / name).touch()
    refused("several splits")


# ---------------------------------------------------------------------------- embedded sets
@pytest.mark.parametrize(("name", "classes"), [("Digits", 10), ("Shapes", 48)])
def test_embedded_data_sets(tmp_path, name, classes):
    cfg = make_cfg(tmp_path / "root")
    cfg.DATASET.NAME = name
    dataset = build_dataset(cfg)
    assert dataset.num_classes == classes
    assert DATASET_REGISTRY.get(name).written_on_first_use
    written = sorted((tmp_path / "root").rglob("*.json"))
    assert [path.name for path in written] == [f"split_zhou_{name}.json"]
    split = json.loads(written[0].read_text())
    for part, key in (("train_x", "train"), ("val", "val"), ("test", "test")):
        assert rows(dataset, part) == split[key]
        assert {label for _, label, _ in split[key]} == set(range(classes))
    stamps = [path.stat().st_mtime_ns for path in written]
    build_dataset(cfg)
    assert [path.stat().st_mtime_ns for path in written] == stamps


def test_an_embedded_data_set_with_an_unwritable_root(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write the data set to .*file/digits"):
        DATASET_REGISTRY.get("Digits")(make_cfg(tmp_path / "file"))


def test_no_embedded_data_set_is_written_among_classes_of_images(tmp_path):
    folders(tmp_path, {"own/cat": 4, "own/dog": 4, "split_fewshot": 0})
    digits = DATASET_REGISTRY.get("Digits")
    with pytest.raises(UserError, match=r"Digits would be written into .*own, whose folders are"):
        digits(make_cfg(tmp_path / "own"))
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["cat", "dog"]
    folders(tmp_path, {"caltech-101/images/face": 1})
    digits(make_cfg(tmp_path))  # a folder of data sets, one of them with folders of classes
    folders(tmp_path / "parts", {"train/cat": 1, "train/dog": 1, "test/cat": 1})
    digits(make_cfg(tmp_path / "parts"))
