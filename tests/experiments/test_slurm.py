"""Runs on Slurm: on a real cluster of this one machine, if Slurm is installed, and on stubs."""

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
from anchoropt_plugin.experiments import compare, executors, slurm
from anchoropt_plugin.experiments.checkout import CHECKOUT

pytest.importorskip("submitit", reason="submitit is not installed: pip install -e '.[slurm]'")

PROGRAMS = "munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel"
WORDS = [
    *("--hosts", "CoOp", "--config", "tiny", "--datasets", "digits", "--shots", "2"),
    *("--protocol", "base2new"),
]
KEYS = ["TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "5", "USE_CUDA", "False"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Start a Slurm cluster; the environment tells its commands where it is."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"there is no Slurm here ({', '.join(missing)} missing)")
    if os.geteuid():
        pytest.skip("only root can start a Slurm cluster")
    folder = tmp_path_factory.mktemp("slurm")
    words = ["bash", str(CHECKOUT.folder / "scripts/start_slurm.sh"), str(folder)]
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
    """Return the id of the only job that trains."""
    records = [json.loads(path.read_text()) for path in (out / "slurm").glob("*.json")]
    (record,) = [record for record in records if "--eval-only" not in record["runs"][0]]
    return record["id"]


class Meanwhile(threading.Thread):
    """A thread that calls ``does`` as soon as ``holds`` returns true."""

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
    # An array of two tests of zero-shot and the job that learns the anchors, then a waiting job.
    assert re.search(r"submitted 3 jobs to Slurm: (\d+)\n.*submitted 1 job to Slurm: \d+", said)
    assert [id.partition("_")[2] for id in jobs_in(tmp_path / "slurm")] == ["0", "1", "2", ""]
    logs = [path.read_text() for path in (tmp_path / "slurm").rglob("log.txt")]
    assert sum("Stage 1: learning" in text for text in logs) == 1
    assert compared_in(tmp_path / "slurm", *words, "--executor", "slurm") == 0
    assert "0 to do" in capsys.readouterr().out and len(jobs_in(tmp_path / "slurm")) == 4


def test_a_requeued_job_resumes_and_the_same_command_attaches_to_it(cluster, tmp_path, capsys):
    out, epochs = tmp_path, 600
    words = ["--seeds", "1", "--anchoropt", "without", "--executor", "slurm"]
    folder = train_folder(out, "CoOp", 1)
    checkpoint = folder / f"prompt_learner/model.pth.tar-{epochs // 10}"
    stopped = Meanwhile(checkpoint.exists, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        compared_in(out, *words, epochs=epochs)
    assert stopped.done
    said = capsys.readouterr().out
    assert re.search(r"still in Slurm: \d+ job.*to cancel: `scancel \d+`", said)
    ask("scontrol", "requeue", training_in(out))
    if "Finish training" in (folder / "log.txt").read_text():
        pytest.skip("the run was faster than its requeue")
    before = jobs_in(out)
    with pytest.raises(UserError, match=r"uses .* with other settings: wait for the job, or"):
        compared_in(out, *words, epochs=epochs, opts=["TRAIN.PRINT_FREQ", "7"])
    assert compared_in(out, *words, epochs=epochs) == 0
    assert "attached to" in capsys.readouterr().out and jobs_in(out) == before
    log = (folder / "log.txt").read_text()
    first, second = log.split("Found checkpoint at")  # once: the log goes on
    assert "Finish training" not in first
    assert f"epoch [{epochs // 10}/{epochs}]" not in second
    assert learned(folder, epochs) and f"epoch [{epochs}/{epochs}]" in second


def test_a_cancelled_job_is_reported_with_its_log(cluster, tmp_path, capsys):
    words = ["--seeds", "1", "--anchoropt", "without", "--executor", "slurm"]
    folder = train_folder(tmp_path, "CoOp", 1)

    cancelled = Meanwhile(
        lambda: list(folder.glob("log.txt")), lambda: ask("scancel", training_in(tmp_path))
    )
    assert compared_in(tmp_path, *words, epochs=1000) == 1
    assert cancelled.done
    said = capsys.readouterr().out
    found = re.search(r"failed: CoOp, .*Slurm ended its job \S+ \(CANCELLED\).*log is (\S+)", said)
    assert Path(found[1]).is_file()


def test_an_array_is_as_large_as_slurm_takes(cluster):
    largest = slurm._largest_array()
    assert largest == slurm.MAX_ARRAY  # Slurm's default, which this cluster has
    words = ["sbatch", "--hold", "--wrap", "true", "--output", "/dev/null"]
    said = ask(*words, f"--array=0-{largest - 1}")
    ask("scancel", said.split()[-1])
    with pytest.raises(subprocess.CalledProcessError):
        ask(*words, f"--array=0-{largest}")


# ---------------------------------------------------------------------- submitted jobs
@pytest.fixture
def submitting(tmp_path, monkeypatch):
    """Put stubs of Slurm's commands on the path: sbatch stores scripts, squeue prints a file."""
    commands, stored = tmp_path / "bin", tmp_path / "submitted"
    commands.mkdir()
    stored.mkdir()
    (tmp_path / "queue").touch()
    scripts = {
        "sbatch": f'n=$(ls {stored} | wc -l); cp "$1" {stored}/$n; echo Submitted batch job 7$n',
        "squeue": f"cat {tmp_path}/queue",
        "srun": "exit 1",
    }
    for name, script in scripts.items():
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    monkeypatch.setattr(slurm, "STATES_EVERY", 0.0)
    monkeypatch.setattr(slurm, "EVENTS_EVERY", 0.0)
    return tmp_path


def options_in(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
    pairs = (line.removeprefix("#SBATCH --").partition("=") for line in lines)
    return {key: value for key, _, value in pairs}


def test_options_reach_sbatch_and_jobs_that_share_anchors_wait(submitting, capsys):
    words = ["--seeds", "1", "2", "3", "--executor", "slurm", "--jobs", "2", "--memory", "16G"]
    words += ["--partition", "long", "--time", "90", "--gpus", "1", "--cpus", "4"]
    out = submitting / "out"
    assert compared_in(out, *words, "--sbatch", "account=me", "--sbatch", "qos=low") == 1
    first, second = (options_in(submitting / "submitted" / name) for name in "01")
    for options in (first, second):
        assert {
            "partition": "long",
            "time": "90",
            "mem": "16G",
            "account": "me",
            "qos": "low",
        }.items() <= options.items()
        assert options["gpus-per-node"] == "1" and options["cpus-per-task"] == "4"
    # Two tests of zero-shot, three trainings of CoOp, and in front the job that learns the anchors.
    assert first["array"] == "0-5%2" and second["array"] == "0-1%2"
    assert "dependency" not in first and second["dependency"] == "afterany:70_0"
    # The queue is empty, so these jobs count as ended by Slurm.
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed: ")]
    assert len(told) == 14 and all("(unknown to squeue); the job's log is" in line for line in told)


def test_more_jobs_than_an_array_takes_are_several(submitting):
    scontrol = submitting / "bin" / "scontrol"
    scontrol.write_text('#!/bin/sh\necho "MaxArraySize            = 4"\n')
    scontrol.chmod(0o755)
    words = ["--seeds", "1", "2", "3", "4", "5", "--executor", "slurm", "--jobs", "4"]
    assert compared_in(submitting / "out", *words) == 1
    submitted = [options_in(path) for path in sorted((submitting / "submitted").iterdir())]
    # Two tests of zero-shot, five trainings of CoOp, the job that learns the anchors; four wait.
    assert [options["array"] for options in submitted] == ["0-3%2", "0-3%2", "0-3%4"]
    assert ["dependency" in options for options in submitted] == [False, False, True]
    assert len(set(jobs_in(submitting / "out"))) == 12


def test_the_command_attaches_to_running_jobs(submitting, capsys):
    words = ["--seeds", "1", "--anchoropt", "without", "--executor", "slurm"]
    out, queue = submitting / "out", submitting / "queue"
    assert compared_in(out, *words) == 1
    queue.write_text("".join(f"{id} RUNNING\n" for id in jobs_in(out)))
    ended = Meanwhile(
        lambda: "attached to 3 jobs" in capsys.readouterr().out, lambda: queue.write_text("")
    )
    assert compared_in(out, *words) == 1
    ended.join()
    assert ended.done and len(list((submitting / "submitted").iterdir())) == 1
    assert compared_in(out, *words) == 1  # ended jobs are submitted again
    assert len(list((submitting / "submitted").iterdir())) == 2


def test_a_refusal_is_one_line(submitting):
    sbatch = submitting / "bin/sbatch"
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    with pytest.raises(UserError, match=r"^Slurm refuses the jobs: .*invalid partition"):
        compared_in(submitting / "out", "--seeds", "1", "--executor", "slurm")


def test_missing_programs_and_invalid_options_are_one_line(submitting, monkeypatch):
    out = submitting / "out"
    for words, says in (
        (["--partition", "long"], "--partition needs --executor slurm"),
        (["--executor", "slurm", "--sbatch", "account"], "give KEY=VALUE"),
    ):
        with pytest.raises(UserError, match=says):
            compared_in(out, *words)
    (submitting / "bin/squeue").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(UserError, match="squeue fails"):
        compared_in(out, "--seeds", "1", "--executor", "slurm")
    (submitting / "bin/squeue").unlink()
    monkeypatch.setenv("PATH", str(submitting / "bin"))
    with pytest.raises(UserError, match="squeue is not installed on this machine: log in"):
        compared_in(out, "--executor", "slurm")
    monkeypatch.setattr(executors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'anchoropt-plugin\[slurm\]'"):
        compared_in(out, "--executor", "slurm")
    assert [*out.iterdir()] == [out / "data"]  # the digits, which the check of the parts reads
