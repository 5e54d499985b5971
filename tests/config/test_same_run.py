"""A checkpoint belongs to the run of its folder, by the settings, classes and images of both."""

from __future__ import annotations

import contextlib
import json

import pytest
import yaml

from anchoropt_plugin import UserError
from anchoropt_plugin.config.same_run import check_of_folder, check_results_of_folder, run_of

SETTINGS = {"SEED": 1, "OPTIM": {"LR": 0.1, "MAX_EPOCH": 5, "EXTEND": False}}


def recorded(folder, classes="cat", images="a", weights="", **settings):
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.dump({**SETTINGS, **settings}))
    (folder / "classes.json").write_text(json.dumps([classes]))
    (folder / "training_images.json").write_text(json.dumps({"digest": images}))
    (folder / "weights.json").write_text(json.dumps({"sha256": weights}))
    return folder


def backbone(name):
    return {"MODEL": {"BACKBONE": {"NAME": name}}}


@pytest.mark.parametrize(
    ("there", "here", "says"),
    [
        ({}, {"OPTIM": {"LR": 0.2}}, "OPTIM.LR was 0.1, now 0.2"),
        ({}, {"OPTIM": {"MAX_EPOCH": 9, "EXTEND": False}}, "OPTIM.MAX_EPOCH was 5, now 9"),
        ({"classes": "cat"}, {"classes": "dog"}, "digest of the classes was"),
        ({"images": "a"}, {"images": "b"}, "digest of the training images was 'a', now 'b'"),
        (backbone("ViT-B/16"), backbone("ViT-B/32"), "BACKBONE.NAME was 'ViT-B/16', now"),
        (backbone("a.pt") | {"weights": "x"}, backbone("a.pt") | {"weights": "y"}, "was 'x', now"),
        (backbone("a.pt") | {"weights": "x"}, backbone("moved.pt") | {"weights": "x"}, ""),
        ({"images": "a", "SEED": -1}, {"images": "b", "SEED": -1}, ""),
        ({"DATASET": {"ROOT": "a"}}, {"DATASET": {"ROOT": "moved"}}, ""),
        ({}, {"OPTIM": {"LR": 0.1, "MAX_EPOCH": 9, "EXTEND": True}}, ""),
        ({}, {"NEW": {"KEY": 1}}, ""),
    ],
)
def test_a_checkpoint_that_was_copied_is_refused(tmp_path, there, here, says):
    run = run_of(recorded(tmp_path / "there", **there))
    path = recorded(tmp_path / "here", **here) / "prompt_learner/model.pth.tar-5"
    with pytest.raises(UserError, match=says) if says else contextlib.nullcontext():
        check_of_folder(path, run)
    for unknown in (None, {}):  # of an earlier version; saved before the record was written
        check_of_folder(path, unknown)
    (tmp_path / "here/config.yaml").unlink()
    check_of_folder(path, run)
    assert run_of(tmp_path / "here") == {}


def test_a_checkpoint_of_an_earlier_version_lacks_the_arguments_of_the_decorator(tmp_path):
    before, now = ({"ANCHOROPT": {"POSITION": position}} for position in ("sinkhorn", "soft"))
    run = run_of(recorded(tmp_path / "there", TRAINER=before))
    path = recorded(tmp_path / "here", TRAINER=now) / "prompt_learner/model.pth.tar-5"
    with pytest.raises(UserError, match="POSITION was 'sinkhorn', now 'soft'"):
        check_of_folder(path, run)
    del run["settings in force"]
    check_of_folder(path, run)  # its run was resumed, and recorded again
    with pytest.raises(UserError, match="SEED was 2, now 1"):
        check_of_folder(path, {**run, "SEED": 2})


BASE = {"SEED": 1, "DATASET.NUM_SHOTS": 4, "DATASET.SUBSAMPLE_CLASSES": "base"}
NEW = BASE | {"DATASET.SUBSAMPLE_CLASSES": "new"}
OTHER = {"SEED": 2}


@pytest.mark.parametrize(
    ("recorded", "after_training", "training", "settings", "says"),
    [
        (BASE, True, BASE, BASE, ""),
        (BASE, True, BASE | OTHER, BASE | OTHER, "SEED was 2, now 1: remove it and test again"),
        (BASE, True, NEW, NEW, "DATASET.SUBSAMPLE_CLASSES was 'new', now 'base'"),
        (BASE, False, BASE, NEW, ""),  # of new classes, in the folder of the training
        (BASE, False, BASE | OTHER, NEW | OTHER, "SEED was 2, now 1"),
        (NEW, False, BASE, NEW, ""),  # in an experiment, a test has a record of its own
        (NEW, False, BASE | OTHER, NEW | OTHER, "SEED was 2, now 1"),
        (NEW, False, {}, NEW, ""),  # zero-shot
        (NEW, False, {}, NEW | OTHER, "SEED was 2, now 1"),
        (BASE, True, None, BASE | OTHER, "SEED was 2, now 1"),  # of an earlier version
        (BASE, False, None, NEW | OTHER, ""),
        ({}, False, BASE, NEW, ""),
        ({"LATER.KEY": 1}, True, BASE, BASE, ""),
    ],
)
def test_results_of_another_run_are_refused(
    tmp_path, recorded, after_training, training, settings, says
):
    if recorded:
        tree = {}
        for key, value in recorded.items():
            section, _, name = key.rpartition(".")
            (tree.setdefault(section, {}) if section else tree)[name] = value
        (tmp_path / "config.yaml").write_text(yaml.dump(tree))
    results = {"after_training": after_training, "settings": settings}
    results |= {} if training is None else {"training": training}
    with pytest.raises(UserError, match=says) if says else contextlib.nullcontext():
        check_results_of_folder(tmp_path, results)
