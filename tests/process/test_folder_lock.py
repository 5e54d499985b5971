"""A second command in an output folder is refused; a killed command blocks nobody."""

from __future__ import annotations

import errno
import os
import platform
import signal
import subprocess
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

import pytest

import dassl.utils
import train
from anchoropt_plugin import UserError
from anchoropt_plugin.__main__ import main as command
from anchoropt_plugin.experiments.compare import main as compare
from anchoropt_plugin.process import folder_lock
from anchoropt_plugin.process.folder_lock import LOCK, locked_folder
from dassl.engine import build_trainer

from ..test_train_cli import DIGITS, TINY, cfg_of

ROOT = Path(train.__file__).parent


def forked(work):
    """Fork a process that calls ``work`` and exits with its status; return the process id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = work()
        except BaseException:  # failed assertions too
            traceback.print_exc()
        finally:
            os._exit(status)  # skips the exit handlers of the tests' process
    return pid


@contextmanager
def child(work):
    """Fork a process that calls ``work(wait)``; ``wait`` reports that its call was reached.

    Yield the process id after that, with all threads stopped. Kill the process at the end.
    """
    said, say = os.pipe()

    def wait():
        os.write(say, b"!")
        signal.pause()

    def works():
        os.close(said)
        work(wait)
        return 0

    pid = forked(works)
    os.close(say)
    with os.fdopen(said, "rb") as file:
        arrived = file.read(1)
    with stopped(pid):
        assert arrived, "the process ended before it called wait"
        yield pid


@contextmanager
def stopped(pid):
    """Stop all threads of a child process; kill the process at the end."""
    try:
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


RUN_THAT_WAITS = """
import signal, sys, train
from dassl.engine import TRAINER_REGISTRY
from trainers.coop import CoOp

class Waits(CoOp):
    def forward_backward(self, batch):
        if self.epoch == 1:
            print("the second epoch", flush=True)
            signal.pause()
        return super().forward_backward(batch)

TRAINER_REGISTRY._obj_map["CoOp"] = Waits
sys.exit(train.main(sys.argv[1:]))
"""


def holder(folder):
    """Fork a process that holds the lock of ``folder``."""

    def work(wait):
        with locked_folder(folder):
            wait()

    return child(work)


def state_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def words(tmp_path):
    def build(*flags, out="out", trainer="CoOp"):
        return [
            *("--root", str(tmp_path / "data"), "--output-dir", str(tmp_path / out)),
            *("--dataset-config-file", DIGITS, "--config-file", TINY, "--seed", "1"),
            *("--trainer", trainer, *flags, "DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "2"),
            *("TRAIN.CHECKPOINT_FREQ", "1", "USE_CUDA", "False"),
            *("DATASET.SUBSAMPLE_CLASSES", "base"),
        ]

    return build


def test_the_second_run_is_refused_and_changes_nothing(words, tmp_path, capsys):
    # Not a fork: torch trains in no fork of a process whose autograd has threads.
    words_of_run = [sys.executable, "-c", RUN_THAT_WAITS, *words()]
    run = subprocess.Popen(words_of_run, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert "the second epoch\n" in iter(run.stdout.readline, "")
    out, pid = tmp_path / "out", run.pid
    with stopped(pid):
        before = state_of(out)
        capsys.readouterr()
        assert train.main(words()) == 2
        assert capsys.readouterr().err == (
            f"error: {out} is in use by process {pid} on {platform.node()}: wait until that "
            "process ends, or give another output folder\n"
        )
        assert state_of(out) == before
        flags = ["--eval-only", "--model-dir", str(out), "--load-epoch", "1"]
        assert train.main(words(*flags)) == 2
        assert train.main(words(*flags, out="elsewhere")) == 0
        assert state_of(out) == before
    assert (out / LOCK).exists()
    capsys.readouterr()
    assert train.main(words()) == 0
    assert "Previous epoch: 1" in capsys.readouterr().out
    assert not list(out.rglob(".*"))


def test_a_killed_run_holds_no_lock_even_if_its_workers_live_on(tmp_path):
    told, tell = os.pipe()

    def work(wait):
        with locked_folder(tmp_path):
            worker = os.fork()
            if worker == 0:
                signal.pause()
            os.write(tell, str(worker).encode())
            wait()

    with child(work):
        worker = int(os.read(told, 20))
    try:
        with locked_folder(tmp_path):
            assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(told), os.close(tell)


def test_blocks_may_be_nested_and_a_fork_inherits_none(tmp_path):
    with locked_folder(tmp_path):
        with locked_folder(tmp_path / "." / ".." / tmp_path.name):
            pass

        def is_refused():
            with pytest.raises(UserError), locked_folder(tmp_path):
                pass
            return 0

        pid = forked(is_refused)
        assert os.waitpid(pid, 0)[1] == 0
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


def test_never_two_at_a_time(tmp_path):
    """The lock file comes and goes; each process increments the count it has read."""
    (tmp_path / "count").write_text("0")
    rounds = 100

    def counts():
        done = 0
        while done < rounds:
            try:
                with locked_folder(tmp_path / "out"):
                    count = int((tmp_path / "count").read_text())
                    (tmp_path / "count").write_text(str(count + 1))
                done += 1
            except UserError:
                os.sched_yield()
        return 0

    children = [forked(counts) for _ in range(4)]
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert int((tmp_path / "count").read_text()) == 4 * rounds


def test_of_several_processes_the_main_one_locks(tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "1")
    with holder(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with locked_folder(tmp_path):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(UserError, match="in use by process"), locked_folder(tmp_path):
            pass


def test_a_folder_that_cannot_be_locked_gives_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folder_lock.fcntl, "lockf", refuse)
    with locked_folder(tmp_path):
        assert "let only one run write there" in caplog.text


def test_a_folder_without_permission_is_named_and_not_its_lock_file(tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refuse)  # the tests may be run as root
    with pytest.raises(PermissionError) as error, locked_folder(tmp_path):
        pass
    assert error.value.filename == str(tmp_path)


def test_the_content_of_the_lock_file_is_shown_as_text(tmp_path):
    with holder(tmp_path):
        (tmp_path / LOCK).write_bytes(b"\x1b[2J\n\xff" + b"x" * 9999)
        with pytest.raises(UserError) as caught, locked_folder(tmp_path):
            pass
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_a_second_comparison_is_refused(tmp_path):
    out = tmp_path / "out"
    words = ["--hosts", "CoOp", "--datasets", "digits", "--config", "tiny", "--seeds", "1"]
    words += ["--shots", "2", "--root", str(tmp_path), "--output-dir", str(out)]
    with holder(out) as pid:
        before = state_of(tmp_path)
        with pytest.raises(UserError, match=f"out is in use by process {pid} on "):
            compare("", words)
        assert state_of(tmp_path) == before


def test_a_trainer_under_another_train_py(words, tmp_path):
    trainer = build_trainer(cfg_of(*words(trainer="CoOp_AnchorOPT")))
    with holder(tmp_path / "out"), pytest.raises(UserError, match="in use by process"):
        trainer.train()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]


SCRIPT = """
import argparse
from dassl.utils import setup_logger
parser = argparse.ArgumentParser()
parser.add_argument("--output-dir")
setup_logger(parser.parse_args().output_dir)
print("at work")
"""


@pytest.mark.parametrize("more", ["", "open(out + '/more', 'w').close()"])
def test_a_log_is_withdrawn_if_a_script_fails_before_it_writes_more(tmp_path, capsys, more):
    fail = "import anchoropt_plugin\nraise anchoropt_plugin.UserError('no such file')\n"
    script = f"{SCRIPT}out = parser.parse_args().output_dir\n{more}\n{fail}"
    (tmp_path / "train.py").write_text(script)
    words = ["run", str(tmp_path / "train.py"), "--output-dir", str(tmp_path / "out")]
    assert command(words) == 2 and capsys.readouterr().err == "error: no such file\n"
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert left == (["out", "out/log.txt", "out/more"] if more else []) + ["train.py"]


@pytest.mark.parametrize("name", ["", "log.txt", "own.log"])
def test_the_log_of_a_dassl_that_locks_nothing(tmp_path, monkeypatch, capsys, name):
    def setup_logger(output=None):
        Path(output or tmp_path, "written").touch()

    monkeypatch.setattr(dassl.utils, "setup_logger", setup_logger)
    (tmp_path / "train.py").write_text(SCRIPT)
    words = ["run", str(tmp_path / "train.py"), "--output-dir", str(tmp_path / "out" / name)]
    with holder(tmp_path / "out"):
        assert command(words) == 2
        assert capsys.readouterr().err.startswith(f"error: {tmp_path}/out is in use by process")
        assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]
    assert dassl.utils.setup_logger is setup_logger
