"""Short experiments that really run: their files, resuming, shared anchors, failures."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

import train
from anchoropt_plugin import UserError
from anchoropt_plugin.experiments import ablate, compare, execution, worker
from anchoropt_plugin.experiments.checkout import CHECKOUT
from anchoropt_plugin.experiments.plan import host_method, plan
from anchoropt_plugin.experiments.protocols import read_protocol
from anchoropt_plugin.experiments.results import outcome, results
from anchoropt_plugin.files.predictions import PREDICTIONS
from anchoropt_plugin.report.page import write_page
from anchoropt_plugin.version import VERSION

SHORT = ["OPTIM.MAX_EPOCH", "2", "TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "5", "USE_CUDA", "False"]
HOST = ["--hosts", "CoOp", "--config", "tiny", "--datasets", "digits", "--shots", "2"]
CACHE = "TRAINER.ANCHOROPT.ANCHOR_CACHE"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def compared_in(out, root, *words, opts=()):
    places = ["--root", str(root), "--output-dir", str(out)]
    return compare.main("", [*HOST, *places, *words, *SHORT, CACHE, str(out / "cache"), *opts])


@pytest.fixture(scope="module")
def compared(root, tmp_path_factory):
    """Run CoOp with and without AnchorOPT, two seeds, two at a time; return the output folder."""
    out = tmp_path_factory.mktemp("compared")
    assert compared_in(out, root, "--seeds", "1", "2", "--jobs", "2") == 0
    return out


def test_a_record_of_an_earlier_version_lacks_new_keys(compared, root, tmp_path):
    out = shutil.copytree(compared, tmp_path / "out")
    changed = [(0.05, True, 1), (0.06, False, 0)]
    method = host_method("CoOp", "tiny", anchoropt=True)
    protocol = read_protocol("base2new").with_changes(
        {"datasets": ["digits"], "shots": [2], "seeds": [1]}
    )
    opts = [*SHORT, CACHE, str(compared / "cache")]
    (job,) = plan(protocol, [method], root, out, opts)
    run = job.runs[0]
    record = run.folder / "config.yaml"
    text = record.read_text()
    for rate, is_whole, n_finished in changed:
        lines = [line for line in text.splitlines() if "DEEP_" not in line]
        assert len(lines) == len(text.splitlines()) - 2 and "    POSITION_LR: 0.05" in lines
        lines[lines.index("    POSITION_LR: 0.05")] = f"    POSITION_LR: {rate}"
        record.write_text("\n".join(lines))
        os.utime(record, ns=(n_finished, n_finished))
        assert bool(outcome(run)) == is_whole


def train_folder(out, trainer, seed, config="tiny"):
    return out / f"base2new/train_base/digits/shots_2/{trainer}/{config}/seed{seed}"


def learned(folder):
    file = folder / "prompt_learner/model.pth.tar-2"
    return torch.load(file, weights_only=True)["state_dict"]


def assert_same_weights(one, other):
    ours, theirs = learned(one), learned(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def logs(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("log.txt*")}


def accuracy_in(folder):
    return float(re.findall(r"\* accuracy: ([\d.]+)%", (folder / "log.txt").read_text())[-1])


# ---------------------------------------------------------------------- files
def test_a_row_for_each_run_with_the_numbers_of_its_log(compared):
    table = pd.read_csv(compared / "results.csv")
    assert sorted(zip(table["method"], table["score"], table["seed"], strict=True)) == sorted(
        [("ZeroshotCLIP", score, 1) for score in ("base", "new")]
        + [
            (method, score, seed)
            for method in ("CoOp", "CoOp_AnchorOPT")
            for score in ("base", "new")
            for seed in (1, 2)
        ]
    )
    for row in table.itertuples():
        assert row.accuracy == pytest.approx(accuracy_in(Path(row.folder)), abs=0.051)
        assert row.accuracy == 100 * row.correct / row.total
    assert (table["OPTIM.MAX_EPOCH"] == 2).all() and (table["DATASET.NUM_SHOTS"] == 2).all()
    assert set(table["most_images"].dropna()) == {2}
    assert (table["seconds"] > 0).all() and (table["peak_memory_mb"] > 100).all()
    assert (table["torch"] == torch.__version__).all()
    (version,) = set(table["anchoropt_plugin"])
    assert version.startswith(VERSION)
    assert f", anchoropt-plugin {version}, " in (compared / "report.html").read_text()


def test_the_page_needs_no_other_file(compared):
    page = (compared / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert page.count("data:image/svg+xml;base64,") == 3  # bars, training curves, position matrices
    for method in ("ZeroshotCLIP", "CoOp", "CoOp_AnchorOPT"):
        assert f"<td>{method}</td>" in page
    assert "Texts of stage 1: digits: configs/descriptions/digits.json." in page
    assert "$" not in re.sub(r"base64,[^\"]+", "", page)
    for name in ("tables.md", "tables.tex", "tables.csv"):
        assert "CoOp" in (compared / name).read_text()


def test_anchors_are_learned_once_and_shared(compared):
    said = [path.read_text() for path in compared.rglob("log.txt")]
    assert sum("Stage 1: learning" in text for text in said) == 1
    assert sum("Stage 1: cached anchors" in text for text in said) == 1


# ---------------------------------------------------------------------- the same numbers
def test_what_is_finished_is_not_run_again(compared, root, capsys):
    before = logs(compared)
    page = compared / "results.md"
    words = ["--seeds", "1", "2", "--jobs", "2", "--markdown", str(page)]
    facts = train_folder(compared, "CoOp", 1) / "run.json"
    text = facts.read_text()
    facts.write_text(text.replace(f'"anchoropt_plugin": "{VERSION}', '"anchoropt_plugin": "0'))
    assert compared_in(compared, root, *words) == 0
    facts.write_text(text)
    assert logs(compared) == before
    said = capsys.readouterr().out
    assert f"Reading the runs in {compared} …" in said
    assert "10 runs, 10 of them finished; 0 to do" in said
    assert "the runs are of 2 versions of the code" in " ".join(said.split())
    assert "| CoOp_AnchorOPT |" in page.read_text()


def test_one_at_a_time_gives_the_same(compared, root, tmp_path):
    words = ["--seeds", "1", "2", "--jobs", "1", "--anchoropt", "with"]
    assert compared_in(tmp_path, root, *words) == 0
    for seed in (1, 2):
        folders = (train_folder(out, "CoOp_AnchorOPT", seed) for out in (compared, tmp_path))
        assert_same_weights(*folders)


def test_train_py_alone_gives_the_same(compared, root, tmp_path):
    words = [
        *("--root", str(root), "--trainer", "CoOp_AnchorOPT", "--seed", "2"),
        *("--dataset-config-file", "configs/datasets/digits.yaml"),
        *("--config-file", "configs/trainers/CoOp/tiny.yaml"),
        *("--output-dir", str(tmp_path / "out"), "DATASET.SUBSAMPLE_CLASSES", "base"),
        *("DATASET.NUM_SHOTS", "2", *SHORT, CACHE, str(tmp_path / "cache")),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "train.py", *words]
    subprocess.run(command, cwd=CHECKOUT.folder, env=environment, check=True, capture_output=True)
    ours = train_folder(compared, "CoOp_AnchorOPT", 2)
    assert_same_weights(ours, tmp_path / "out")
    for number in ("correct", "macro_f1"):
        lines = [
            re.findall(rf"\* {number}: .*", (folder / "log.txt").read_text())
            for folder in (ours, tmp_path / "out")
        ]
        assert lines[0] == lines[1] != []


# ---------------------------------------------------------------------- finished runs
@pytest.fixture
def job(compared, root):
    """Return a job with a finished training and a finished test."""
    protocol = read_protocol("base2new").with_changes(
        {"datasets": ["digits"], "shots": [2], "seeds": [1]}
    )
    method = host_method("CoOp", "tiny", anchoropt=False)
    opts = [*SHORT, CACHE, str(compared / "cache")]
    (job,) = plan(protocol, [method], root, compared, opts)
    return job


def test_a_finished_run_is_known_by_its_results_and_its_settings(job):
    for run in job.runs:
        assert outcome(run)["accuracy"] == pytest.approx(accuracy_in(run.folder), abs=0.051)
        numbers, record = run.folder / "results.json", run.folder / "config.yaml"
        for path, old, new in (
            (numbers, '"after_training": true', '"after_training": false'),
            (numbers, '"after_training": false', '"after_training": true'),
            (record, "OPTIM:", "OTHER:"),
        ):
            text, times = path.read_text(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
            content = json.loads(text.replace(old, new)) if path == numbers else {}
            content.pop("digest", None)  # as an earlier version wrote it
            path.write_text(json.dumps(content) if content else text.replace(old, new))
            assert bool(outcome(run)) == (old not in text)
            path.write_text(text)
            os.utime(path, ns=times)
        assert outcome(run)


def test_results_that_were_copied_are_refused(job, compared):
    folder = job.runs[1].folder
    kept = {folder / name: (folder / name).read_bytes() for name in ("results.json", PREDICTIONS)}
    times = {path: (path.stat().st_atime_ns, path.stat().st_mtime_ns) for path in kept}
    zero_shot = next(compared.glob("*/test_new/**/ZeroshotCLIP/**/results.json")).parent
    other_seed = Path(str(folder).replace("seed1", "seed2"))
    for source, name, says in (
        (zero_shot, "results.json", r"of a test with TRAINER.NAME ZeroshotCLIP, .* with CoOp: rem"),
        (
            other_seed,
            "results.json",
            r"of a test with SEED 2, but its folder of one with 1: remove",
        ),
        (zero_shot, PREDICTIONS, r"predictions\.csv was changed, or copied from elsewhere, after"),
    ):
        (folder / name).write_bytes((source / name).read_bytes())
        with pytest.raises(UserError, match=says):
            outcome(job.runs[1])
        for path, content in kept.items():
            path.write_bytes(content)
            os.utime(path, ns=times[path])
    assert outcome(job.runs[1])


def test_a_test_is_not_finished_once_its_model_was_trained_again(job):
    trained, tested = job.runs
    (checkpoint,) = trained.folder.glob("*/checkpoint")
    times = checkpoint.stat().st_atime_ns, checkpoint.stat().st_mtime_ns
    later = (tested.folder / "results.json").stat().st_mtime_ns + 10**9
    os.utime(checkpoint, ns=(later, later))
    assert not outcome(tested) and execution.unfinished(job) == [tested]
    os.utime(checkpoint, ns=times)
    assert execution.unfinished(job) == []


def test_tests_of_an_unfinished_training_are_in_no_table(job):
    results_file = job.runs[0].folder / "results.json"
    assert len(results([job])) == 2
    kept = results_file.rename(results_file.with_suffix(".kept"))
    assert outcome(job.runs[1]) and results([job]).empty
    assert execution.unfinished(job) == job.runs
    kept.rename(results_file)
    assert execution.unfinished(job) == []


def test_a_test_of_another_model_or_epoch_in_its_folder_is_not_its_own(job, tmp_path):
    trained, tested = job.runs
    argv = dict(zip(tested.argv, tested.argv[1:], strict=False))
    assert argv["--load-epoch"] == "2" and Path(argv["--model-dir"]) == trained.folder
    copied = shutil.copytree(trained.folder, tmp_path / "copied")
    of_epoch = trained.folder / "prompt_learner/model.pth.tar-1"
    last = torch.load(of_epoch.with_name("model.pth.tar-2"), weights_only=True)
    torch.save({**last, "epoch": 1}, of_epoch)
    for flag, value, says in (
        ("--model-dir", str(copied), "/copied, 269 images"),
        ("--load-epoch", "1", "epoch 1 of the model in ../../"),
    ):
        words = [*tested.argv]
        words[words.index(flag) + 1] = value
        assert train.main(words) == 0
        assert not outcome(tested) and execution.unfinished(job) == [tested]
        assert says in write_page(tested.folder).read_text()
    assert train.main([*tested.argv, "DATASET.TEMPLATE", "{} on black"]) == 0
    with pytest.raises(
        UserError, match=r"of a test with DATASET\.TEMPLATE .* on black, but its fol"
    ):
        outcome(tested)
    at = tested.argv.index("--model-dir")
    assert train.main([*tested.argv[:at], *tested.argv[at + 4 :]]) == 0  # of no trained model
    assert not outcome(tested)
    assert train.main([*tested.argv]) == 0
    of_epoch.unlink()
    assert execution.unfinished(job) == []


def test_a_folder_of_an_earlier_version_is_only_tested_again(compared, root, tmp_path):
    shutil.copytree(compared, tmp_path / "old")
    for path in [*tmp_path.rglob("results.json"), *tmp_path.rglob("events.jsonl")]:
        path.unlink()
    for path in tmp_path.rglob("config.yaml"):
        path.write_text(path.read_text().replace(str(compared), str(tmp_path / "old")))
    before = pd.read_csv(compared / "results.csv")
    assert compared_in(tmp_path / "old", root, "--seeds", "1", "2", "--jobs", "2") == 0
    after = pd.read_csv(tmp_path / "old/results.csv")
    assert list(after["correct"]) == list(before["correct"])
    log, old = (
        (train_folder(at, "CoOp_AnchorOPT", 1) / "log.txt").read_text()
        for at in (tmp_path / "old", compared)
    )
    said = log.removeprefix(old)
    assert len(said) < len(log) and "Finish training" in said and "epoch [" not in said


# ---------------------------------------------------------------------- failures
def test_a_failure_is_told_at_the_end_and_the_rest_is_done(root, tmp_path, capsys):
    blocked = train_folder(tmp_path, "CoOp", 1)
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file instead of a folder")
    assert compared_in(tmp_path, root, "--seeds", "1", "--anchoropt", "without") == 1
    said = capsys.readouterr().out
    last = said[said.rindex("finished") :]
    assert re.search(r"failed: CoOp, digits base, seed 1: train: .*exists", last)
    assert "test: skipped: CoOp, digits base, seed 1: train failed" in last
    assert set(pd.read_csv(tmp_path / "results.csv")["method"]) == {"ZeroshotCLIP"}
    assert "<h2>Failed</h2>" in (tmp_path / "report.html").read_text()
    blocked.unlink()
    assert compared_in(tmp_path, root, "--seeds", "1", "--anchoropt", "without") == 0
    assert "<h2>Failed</h2>" not in (tmp_path / "report.html").read_text()


def test_a_bug_is_one_line_with_its_trace_in_the_log(job, tmp_path, monkeypatch):
    run = job.runs[0]
    (tmp_path / "log.txt").write_text("so far\n")
    monkeypatch.setattr(train, "main", lambda argv: 1 / 0)
    object.__setattr__(run, "folder", tmp_path)
    receive, send = multiprocessing.Pipe(duplex=False)
    worker.perform(run, send, {}, {})
    assert receive.recv() == "ZeroDivisionError: division by zero"
    assert "Traceback (most recent call last)" in (tmp_path / "log.txt").read_text()


def start(root, out):
    words = [*HOST, "--seeds", "1", "2", "3", "--root", str(root), "--output-dir", str(out)]
    words += ["--jobs", "2", *SHORT, CACHE, str(out / "cache")]
    return subprocess.Popen(
        [sys.executable, str(CHECKOUT.folder / "scripts/compare.py"), *words],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(holds, seconds=120):
    end = time.time() + seconds
    while not holds():
        assert time.time() < end
        time.sleep(0.02)


def nobody_in(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_kill_loses_no_finished_run(root, tmp_path):
    process = start(root, tmp_path)
    wait_for(lambda: len(list(tmp_path.rglob("run.json"))) >= 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    assert len(finished) < 14
    assert compared_in(tmp_path, root, "--seeds", "1", "2", "3", "--jobs", "2") == 0
    assert len(pd.read_csv(tmp_path / "results.csv")) == 14
    again = [path for path, then in finished.items() if path.stat().st_mtime_ns != then]
    assert not again
    assert all(len(list(path.parent.glob("log.txt*"))) == 1 for path in finished)


def test_runs_end_with_the_process_that_asked_for_them(root, tmp_path):
    process = start(root, tmp_path)
    wait_for(lambda: logs(tmp_path))
    process.kill()
    process.wait()
    wait_for(lambda: nobody_in(process.pid), seconds=30)


# ---------------------------------------------------------------------- plans and devices
def test_a_dry_run_estimates_and_writes_nothing(root, tmp_path, capsys):
    out = tmp_path / "out"
    assert compared_in(out, root, "--seeds", "1", "--anchoropt", "without", "--dry-run") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "4 runs, 0 of them finished; 4 to do" in said
    assert re.search(r"about \d+ min \d\d s, by steps timed now", said)
    assert not out.exists()


def test_workers_share_the_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert execution.default_workers() == 2
    assert execution._Machine(3, CHECKOUT).free == ["2", "3", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert execution._Machine(2, CHECKOUT).free == ["", ""]


def test_an_ablation_from_training_to_report(root, tmp_path):
    words = ["--host", "CoOp", *HOST[2:], "--seeds", "1", "--root", str(root)]
    words += ["--output-dir", str(tmp_path), "--jobs", "2", "--one-at-a-time"]
    words += ["--grid", "position=sinkhorn,identity", "--grid", "averaging=never,anchors"]
    assert ablate.main("", [*words, *SHORT, CACHE, str(tmp_path / "cache")]) == 0
    table = pd.read_csv(tmp_path / "results.csv")
    rows = ["ZeroshotCLIP", "CoOp", "CoOp_AnchorOPT", "position=identity"]
    rows += ["averaging=never", "averaging=anchors", "CoOp, averaged with zero-shot on new"]
    assert set(table["method"]) == set(rows)
    averaged = table[table["method"] == rows[-1]]
    assert set(averaged["reference"]) == {"CoOp_AnchorOPT"}
    never = table[table["method"] == "averaging=never"].set_index("score")
    assert set(never["does"]) == {"test"} and set(never.index) == {"base", "new"}
    assert set(never["TRAINER.ANCHOROPT.ENSEMBLE"]) == {"never"}
    default = table[table["method"] == "CoOp_AnchorOPT"].set_index("score")
    # On base classes the default does not average: this is the same test of the same model.
    assert never.loc["base", "correct"] == default.loc["base", "correct"]
    assert (tmp_path / "report.html").read_text().count("data:image/svg+xml;base64,") == 2
