"""Named splits of the classes of Shapes: their halves, their images, refusals."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from anchoropt_plugin.datasets.embedded import SHAPES_SPLIT
from anchoropt_plugin.datasets.embedded_sets import Digits, Shapes
from anchoropt_plugin.datasets.synthetic import BENCHMARK, CLASS_SPLITS
from anchoropt_plugin.errors import UserError
from anchoropt_plugin.files.readers import read_json

PLACES = {"colour": 0, "fill": 1, "shape": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def read(root, which="all", class_split="", shots=2, kind=Shapes):
    node = {"ROOT": str(root), "NUM_SHOTS": shots, "SUBSAMPLE_CLASSES": which}
    return kind(SimpleNamespace(SEED=1, DATASET=SimpleNamespace(**node, CLASS_SPLIT=class_split)))


def seen(data, class_names=None):
    """Return path and class name of every image of training and test."""
    return {
        (item.impath, item.classname)
        for item in [*data.train_x, *data.test]
        if class_names is None or item.classname in class_names
    }


def test_every_split_has_each_class_once():
    for names in CLASS_SPLITS.values():
        assert sorted(names) == sorted(map(str, BENCHMARK))


def test_halves_share_what_they_should():
    for split, names in CLASS_SPLITS.items():
        base, new = ([name.split() for name in half] for half in (names[:24], names[24:]))
        for attribute, place in PLACES.items():
            shared = {words[place] for words in base} & {words[place] for words in new}
            if split == attribute == "fill":
                assert shared == {"dotted"}  # no set of fills has half of the classes
                assert sum(words[place] == "dotted" for words in base) == 3
            else:
                assert bool(shared) == (split != attribute)


def test_without_a_name_the_split_is_that_by_colour(root):
    labels = {name: label for label, name in enumerate(CLASS_SPLITS["colour"])}
    parts = read_json(root / "shapes" / SHAPES_SPLIT) if read(root, shots=-1) else {}
    for which in ("base", "new", "all"):
        plain, named = read(root, which), read(root, which, "colour")
        for part in ("train_x", "val", "test"):
            assert [vars(item) for item in getattr(plain, part)] == [
                vars(item) for item in getattr(named, part)
            ]
    assert all(labels[name] == label for part in parts.values() for _, label, name in part)


@pytest.mark.parametrize("class_split", CLASS_SPLITS)
def test_base_and_new_are_the_halves_with_the_same_images(root, class_split):
    order = CLASS_SPLITS[class_split]
    everything = read(root)
    for which, names in (("base", order[:24]), ("new", order[24:])):
        data = read(root, which, class_split)
        assert data.classnames == list(names)
        assert {item.classname: item.label for item in data.train_x} == {
            name: label for label, name in enumerate(names)
        }
        assert seen(data) == seen(everything, names)  # the few-shot draw does not change


def test_splits_share_the_file_of_the_draw(root):
    read(root).write_draw()
    file = root / "shapes/split_fewshot/shot_2-seed_1.json"
    before = file.read_text()
    for name in CLASS_SPLITS:
        read(root, "base", name)
    assert file.read_text() == before and len(json.loads(before)["train"]) == 96


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (
            Shapes,
            "color",
            r"DATASET.CLASS_SPLIT is 'color' .did you mean 'colour'.*, but Shapes has no such "
            "split: choose colour, shape, fill, shuffled",
        ),
        (Digits, "shape", "CLASS_SPLIT is 'shape', but Digits has no named splits: leave it empty"),
    ],
)
def test_an_unknown_split_is_refused_before_anything_is_written(tmp_path, kind, name, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, class_split=name, kind=kind)
    assert not list(tmp_path.iterdir())
