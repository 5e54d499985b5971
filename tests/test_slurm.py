"""Runs on a Slurm cluster: a real one of this machine alone, where its packages are installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch

from anchoropt_plugin import UserError
from experiments import compare, slurm
from experiments.files import REPOSITORY

pytest.importorskip("submitit", reason="submitit is not installed: pip install -e '.[slurm]'")

PROGRAMS = "munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel"
WORDS = [
    *("--hosts", "CoOp", "--config", "tiny", "--datasets", "digits", "--shots", "2"),
    *("--protocol", "base2new"),
]
KEYS = ["TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "5", "USE_CUDA", "False"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Slurm cluster; its commands find it by the environment."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"there is no Slurm here ({', '.join(missing)} missing)")
    if os.geteuid():
        pytest.skip("only root can start a Slurm cluster")
    folder = tmp_path_factory.mktemp("slurm")
    words = ["bash", str(REPOSITORY / "scripts/start_slurm.sh"), str(folder)]
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(words, stdout=said, stderr=said)
    try:
        if not until(lambda: (folder / "ready").exists() or process.poll() is not None, 60):
            pytest.skip("the Slurm cluster did not start within 60 s")
        if process.poll() is not None:
            pytest.skip(f"no Slurm cluster: {(folder / 'said').read_text().splitlines()[-1]}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            patch.setattr(slurm, "STATES_EVERY", 1.0)
            patch.setattr(slurm, "EVENTS_EVERY", 0.2)
            yield
    finally:
        process.terminate()
        process.wait()


def until(holds, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.05)
    return False


def ask(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def compared_in(out, *words, epochs=2, opts=()):
    places = ["--root", str(out / "data"), "--output-dir", str(out)]
    cache = ["TRAINER.ANCHOROPT.ANCHOR_CACHE", str(out / "cache")]
    keys = ["OPTIM.MAX_EPOCH", str(epochs), *KEYS, *cache]
    return compare.main("", [*WORDS, *places, *words, *keys, *opts])


def train_folder(out, trainer, seed):
    return out / f"base2new/train_base/digits/shots_2/{trainer}/tiny/seed{seed}"


def learned(folder, epoch):
    file = folder / f"prompt_learner/model.pth.tar-{epoch}"
    return torch.load(file, weights_only=True)["state_dict"]


def assert_same_weights(one, other, epoch):
    ours, theirs = learned(one, epoch), learned(other, epoch)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def results_in(folder):
    return re.findall(r"^\* (correct|macro_f1): (.*)", (folder / "log.txt").read_text(), re.M)


def jobs_in(out):
    records = [json.loads(path.read_text()) for path in (out / "slurm").glob("*.json")]
    ids = sorted(record["id"] for record in records)
    return sorted(ids, key=lambda id: int(id.partition("_")[0]))


def training_in(out):
    """The id of the one job that trains."""
    records = [json.loads(path.read_text()) for path in (out / "slurm").glob("*.json")]
    (record,) = [record for record in records if "--eval-only" not in record["runs"][0]]
    return record["id"]


class Meanwhile(threading.Thread):
    """Does something as soon as something else holds, while the test's own thread is at work."""

    def __init__(self, holds, does):
        super().__init__(daemon=True)
        self.holds, self.does, self.done = holds, does, False
        self.start()

    def run(self):
        if until(self.holds, 120):
            self.does()
            self.done = True


# ---------------------------------------------------------------------- on a cluster
def test_the_numbers_are_those_of_this_machine(cluster, tmp_path, capsys):
    words = ["--seeds", "1", "2", "--anchoropt", "with"]
    assert compared_in(tmp_path / "slurm", *words, "--executor", "slurm", "--memory", "900M") == 0
    said = capsys.readouterr().out
    assert compared_in(tmp_path / "here", *words, "--jobs", "2") == 0
    for seed in (1, 2):
        folders = [
            train_folder(tmp_path / place, "CoOp_AnchorOPT", seed) for place in ("slurm", "here")
        ]
        assert_same_weights(*folders, epoch=2)
        assert results_in(folders[0]) == results_in(folders[1]) != []
    # An array of two tests of zero-shot and who learns the anchors; the other waits for that one.
    assert re.search(r"submitted 3 jobs to Slurm: (\d+)\n.*submitted 1 jobs to Slurm: \d+", said)
    assert [id.partition("_")[2] for id in jobs_in(tmp_path / "slurm")] == ["0", "1", "2", ""]
    logs = [path.read_text() for path in (tmp_path / "slurm").rglob("log.txt")]
    assert sum("Stage 1: learning" in text for text in logs) == 1
    assert compared_in(tmp_path / "slurm", *words, "--executor", "slurm") == 0
    assert "0 to do" in capsys.readouterr().out and len(jobs_in(tmp_path / "slurm")) == 3


def test_a_requeued_job_goes_on_and_the_same_command_attaches_to_it(cluster, tmp_path, capsys):
    out, epochs = tmp_path / "slurm", 60
    words = ["--seeds", "1", "--anchoropt", "without", "--executor", "slurm"]
    folder = train_folder(out, "CoOp", 1)
    checkpoint = folder / "prompt_learner/model.pth.tar-6"
    stopped = Meanwhile(checkpoint.exists, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        compared_in(out, *words, epochs=epochs)
    assert stopped.done
    said = capsys.readouterr().out
    assert re.search(r"jobs go on in Slurm.*`scancel \d+` cancels them", said)
    ask("scontrol", "requeue", training_in(out))
    before = jobs_in(out)
    with pytest.raises(UserError, match="is at work in .* with other settings: wait for it, or"):
        compared_in(out, *words, epochs=epochs, opts=["TRAIN.PRINT_FREQ", "7"])
    assert compared_in(out, *words, epochs=epochs) == 0
    assert "attached to" in capsys.readouterr().out and jobs_in(out) == before
    assert len(list(folder.glob("log.txt*"))) == 2  # a life has one
    assert compared_in(tmp_path / "here", *words[:4], epochs=epochs) == 0
    assert_same_weights(folder, train_folder(tmp_path / "here", "CoOp", 1), epochs)


def test_a_cancelled_job_is_told_with_its_log(cluster, tmp_path, capsys):
    words = ["--seeds", "1", "--anchoropt", "without", "--executor", "slurm"]
    folder = train_folder(tmp_path, "CoOp", 1)

    cancelled = Meanwhile(
        lambda: list(folder.glob("log.txt")), lambda: ask("scancel", training_in(tmp_path))
    )
    assert compared_in(tmp_path, *words, epochs=300) == 1
    assert cancelled.done
    said = capsys.readouterr().out
    found = re.search(r"failed: CoOp, .*Slurm ended its job \S+ \(CANCELLED\).*log is (\S+)", said)
    assert Path(found[1]).is_file()
