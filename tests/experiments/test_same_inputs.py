"""No table mixes runs before and after a change of the images or of the descriptions."""

from __future__ import annotations

import contextlib
import json

import pytest
from PIL import Image

from anchoropt_plugin.dassl_compat.saved_weights import CHANGED
from anchoropt_plugin.datasets.embedded import write_digits
from anchoropt_plugin.errors import UserError
from anchoropt_plugin.experiments import same_inputs
from anchoropt_plugin.experiments.plan import host_method, plan
from anchoropt_plugin.experiments.preflight import check_parts, explained
from anchoropt_plugin.experiments.protocols import read_protocol
from anchoropt_plugin.files.training_images import digest_of_names
from anchoropt_plugin.process.command_line import status_of

from .test_runs import compared_in


@pytest.fixture
def runs(tmp_path):
    """Return two seeds of a host with AnchorOPT: trainings and tests."""
    protocol = read_protocol("base2new").with_changes(
        {"datasets": ["digits"], "shots": [2], "seeds": [1, 2]}
    )
    method = host_method("CoOp", "tiny", anchoropt=True)
    jobs = plan(protocol, [method], tmp_path, tmp_path / "out", ["USE_CUDA", "False"])
    return jobs, [run for job in jobs for run in job.runs]


def finished(monkeypatch, results):
    monkeypatch.setattr(same_inputs, "outcome", lambda run: results.get(run.folder, {}))


def of_images(digest, drawn=False):
    return {"accuracy": 50.0, "images": {"digest": digest, "drawn": drawn}}


def test_other_test_images_are_not_in_one_table(runs, monkeypatch):
    jobs, (base, new, base_2, new_2) = runs
    results = {run.folder: of_images(run.score) for run in (base, new, base_2, new_2)}
    finished(monkeypatch, results)
    same_inputs.check_same_inputs(jobs)
    results[new_2.folder] = of_images("another")
    with pytest.raises(UserError, match=r"the test images of .* differ") as error:
        same_inputs.check_same_inputs(jobs)
    assert str(new.folder) in str(error.value) and str(new_2.folder) in str(error.value)
    for run in (new, new_2):  # the seed draws the images
        results[run.folder]["images"]["drawn"] = True
    same_inputs.check_same_inputs(jobs)
    results[new_2.folder] = {"accuracy": 50.0}  # of an earlier version
    same_inputs.check_same_inputs(jobs)


def test_a_row_of_two_models_is_refused(runs, monkeypatch):
    jobs, (base, new, *_) = runs
    finished(monkeypatch, {new.folder: of_images("new"), base.folder: {CHANGED: True}})
    with pytest.raises(UserError, match="has changed its weights after the last checkpoint in"):
        same_inputs.check_same_inputs(jobs)
    jobs[0].runs.remove(new)
    same_inputs.check_same_inputs(jobs)


def test_renamed_classes_are_not_in_one_table(runs, monkeypatch):
    jobs, (base, new, base_2, new_2) = runs
    results = {run.folder: of_images(run.score) for run in (base, new, base_2, new_2)}
    for run in (new, new_2):
        results[run.folder]["images"]["names"] = digest_of_names(["five", "six"])
    for run in (base, base_2):  # a file that earlier versions wrote, too
        run.folder.mkdir(parents=True)
        (run.folder / "classes.json").write_text('["zero", "one"]')
    finished(monkeypatch, results)
    same_inputs.check_same_inputs(jobs)
    results[new.folder]["images"]["names"] = digest_of_names(["zero", "one"])
    with pytest.raises(UserError, match=r"have the same classes, DATASET\.SUBSAMPLE_CLASSES base"):
        same_inputs.check_same_inputs(jobs)
    results[new.folder]["images"]["names"] = digest_of_names(["five", "six"])
    results[new_2.folder]["images"]["names"] = digest_of_names(["six", "five"])
    with pytest.raises(UserError, match=r"the class names of .* differ"):
        same_inputs.check_same_inputs(jobs)
    del results[new_2.folder]["images"]["names"]  # as an earlier version wrote it
    same_inputs.check_same_inputs(jobs)
    (base_2.folder / "classes.json").write_text('["zero", "stick"]')
    with pytest.raises(UserError, match=r"the class names of .* differ"):
        same_inputs.check_same_inputs(jobs)


def test_other_texts_under_the_same_name_are_not_in_one_table(runs, monkeypatch):
    jobs, (first, _, second, _) = runs
    finished(monkeypatch, {run.folder: {"accuracy": 50.0} for run in (first, second)})
    settings = {"descriptions": "a.json", "anchor_weights": "", "max_template_length": 10}

    def record(run, sources, **changed):
        run.folder.mkdir(parents=True, exist_ok=True)
        text = {"trainer": "x", "backbone": "tiny", "classes": ["a"], "sources": sources}
        text["settings"] = {**settings, **changed}
        (run.folder / "anchoropt.json").write_text(json.dumps(text))

    record(first, "one")
    for sources, changed in (("one", {}), (None, {}), ("", {}), ("two", {"descriptions": "b"})):
        record(second, sources, **changed)
        same_inputs.check_same_inputs(jobs)
    record(second, "two")
    with pytest.raises(UserError, match=r"the descriptions or anchors of .* differ"):
        same_inputs.check_same_inputs(jobs)


def test_a_changed_data_set_is_told_before_further_runs(tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "out"
    write_digits(root / "digits")
    assert compared_in(out, root, "--seeds", "1", "--anchoropt", "without") == 0
    words = "--seeds", "1", "2", "--anchoropt", "without"
    split = root / "digits/split_zhou_Digits.json"
    text = split.read_text()
    split.write_text(text.replace('"one"', '"stick"'))
    assert status_of(lambda: compared_in(out, root, *words)) == 2
    assert "the class names of " in capsys.readouterr().err
    split.write_text(text)
    rows = json.loads(text)["test"]
    Image.effect_noise((64, 64), 90).save(root / "digits/images" / rows[0][0])  # class zero
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert status_of(lambda: compared_in(out, root, *words)) == 2
    said = capsys.readouterr().err
    assert "the test images of " in said and "give another --output-dir" in said
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_test_on_missing_validation_images_is_told_before_any_run(tmp_path):
    root = tmp_path / "data"
    for path in [root / part / name / "0.png" for part in ("train", "test") for name in "ab"]:
        path.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(path)
    protocol = read_protocol("few_shot").with_changes(
        {"datasets": ["image_folder"], "shots": [1], "seeds": [1]}
    )
    method = host_method("CoOp", "tiny", anchoropt=False)
    (job,) = plan(protocol, [method], root, tmp_path / "out", ["TEST.SPLIT", "val"])
    with pytest.raises(UserError, match=r"before any run: .* TEST.SPLIT is val, but ImageFolder"):
        check_parts(job.runs)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("KeyError: 'mine'", "the trainer's loader does not know the CLIP 'mine': let it return"),
        ("URLError: <urlopen error>", "cannot download the weights of mine: put them where"),
        ("KeyError: 'ours'", "KeyError: 'ours'"),
    ],
)
def test_weights_that_a_trainers_own_loader_does_not_find_are_told(fault, says):
    assert says in explained(fault, "mine")


@pytest.mark.parametrize("protocol", ["base2new", "few_shot"])
def test_contexts_of_single_classes_are_not_tested_on_others(tmp_path, protocol):
    chosen = read_protocol(protocol).with_changes({"datasets": ["digits"], "seeds": [1]})
    method = host_method("CoOp", "tiny", anchoropt=False)
    jobs = plan(chosen, [method], tmp_path, tmp_path / "out", ["TRAINER.COOP.CSC", "True"])
    refused = pytest.raises(UserError, match=r"before any run: .*: train: a context for each class")
    with refused if protocol == "base2new" else contextlib.nullcontext():
        check_parts(run for job in jobs for run in job.runs)


def test_other_weights_in_one_file_are_not_in_one_table(runs, monkeypatch):
    jobs, (first, _, second, _) = runs
    finished(monkeypatch, {run.folder: {"accuracy": 50.0} for run in (first, second)})
    for run, weights in ((first, "one"), (second, "one"), (second, "two")):
        same_inputs.check_same_inputs(jobs)
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "weights.json").write_text(json.dumps({"sha256": weights}))
    with pytest.raises(UserError, match=r"the weights in tiny of .* differ"):
        same_inputs.check_same_inputs(jobs)


@pytest.mark.parametrize("key", ["DATASET.NUM_SHOTS", "DATASET.SUBSAMPLE_CLASSES", "SEED"])
def test_what_makes_runs_different_is_not_set_for_all(tmp_path, key):
    method = host_method("CoOp", "tiny", anchoropt=False)
    with pytest.raises(UserError, match=f"{key} is set for each run: give --"):
        plan(read_protocol("base2new"), [method], tmp_path, tmp_path / "out", [key, "1"])
