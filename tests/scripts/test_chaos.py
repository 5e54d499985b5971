"""Killed runs resume and end like undisturbed runs; no file is ever half written."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import default_collate
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import train
from anchoropt_plugin import UserError
from anchoropt_plugin.dassl_compat.utils.torchtools import save_checkpoint
from anchoropt_plugin.files import checkpoints
from anchoropt_plugin.files.atomic import atomic_write
from anchoropt_plugin.files.checkpoint_folder import last_checkpoint_name, newest_common_checkpoint
from anchoropt_plugin.method.position import AnchorPositionModule
from anchoropt_plugin.process.command_line import status_of
from anchoropt_plugin.process.randomness import set_random_seed
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.optim import build_lr_scheduler, build_optimizer

ROOT = Path(train.__file__).parent


class Pair(TrainerX):
    """Two linear models, each with its checkpoint, trained with amp's scaler."""

    def build_model(self):
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
        for name in ("first", "second"):
            model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, self.num_classes))
            optim = build_optimizer(model, self.cfg.OPTIM)
            self.register_model(name, model, optim, build_lr_scheduler(optim, self.cfg.OPTIM))

    def forward_backward(self, batch):
        images, labels, _ = self.parse_batch_train(batch)
        loss = sum(F.cross_entropy(model(images), labels) for model in self._models.values())
        self.model_zero_grad()
        self.scaler.scale(loss).backward()
        for optim in self._optims.values():
            self.scaler.step(optim)
        self.scaler.update()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

    def model_inference(self, images):
        return self._models["first"](images)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def words(root, tmp_path, monkeypatch):
    """Return a command that trains Pair for three epochs, with a checkpoint after each."""
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "Pair", Pair)

    def build(*keys, out="out", trainer="Pair"):
        return [
            *("--root", str(root), "--output-dir", str(tmp_path / out), "--trainer", trainer),
            *("--dataset-config-file", str(ROOT / "configs/datasets/digits.yaml")),
            *("--config-file", str(ROOT / "configs/trainers/CoOp/tiny.yaml"), "--seed", "1"),
            *("DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "3", "USE_CUDA", "False"),
            *("TRAIN.CHECKPOINT_FREQ", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "8", *keys),
        ]

    return build


def trainer_of(words):
    cfg = train.setup_cfg(train.build_parser().parse_args(words))
    set_random_seed(cfg.SEED)
    return build_trainer(cfg)


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def same_checkpoints(folder, other):
    names = sorted(path.relative_to(folder) for path in folder.rglob("*pth.tar*"))
    assert names == sorted(path.relative_to(other) for path in other.rglob("*pth.tar*"))
    return all(equal(checkpoints.load(folder / n), checkpoints.load(other / n)) for n in names)


@pytest.mark.skipif(
    torch.__version__.startswith("2.4."),
    reason="with torch 2.4 a resumed run can differ in the last bit",
)
def test_a_few_random_kills_leave_no_trace(tmp_path):
    command = [sys.executable, str(ROOT / "scripts/chaos.py"), "--kills", "4", "--seed", "2"]
    done = subprocess.run(
        [*command, "--runs", "best of validation", "--json", str(tmp_path / "chaos.json")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "chaos.json").read_text())
    assert figures["mismatches"] == 0
    assert figures["kills"] >= 4


# Write files in place, and kill the process in the middle of the second file `checkpoint`.
_BROKEN = """
import contextlib, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1] + "/scripts")
import chaos, kills
from anchoropt_plugin.files import atomic, checkpoints
from anchoropt_plugin.dassl_compat.utils import torchtools

seen = [-10]

@contextlib.contextmanager
def in_place(path):
    with open(path, "wb") as file:
        yield file
        seen[0] += Path(path).name == "checkpoint"
        if seen == [2]:
            file.truncate(file.tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)

atomic.atomic_write = checkpoints.atomic_write = torchtools.atomic_write = in_place
scratch = Path(sys.argv[2])
chaos.write_digits(scratch / "digits")
words = [*chaos._COMMAND, *chaos.RUNS["both stages"]]
reference = kills.refer(chaos.prepare_folder(scratch / "a", scratch / "digits"), words)
folder = chaos.prepare_folder(scratch / "b", scratch / "digits")
seen[0] = 0
end = kills.run(folder, words)
assert end.status == -9, end
seen[0] = -10
end = kills.run(folder, words)
print("found" if end.status or chaos.differences(folder, reference.folder) else "missed")
assert not kills.is_proper("killed in a write", kills.Ended(1, ""))
assert not kills.is_proper("SIGTERM, any time", kills.Ended(143, "Traceback"))
assert not kills.is_proper("full disk", kills.Ended(2, "error: x\\nTraceback"))
"""


def test_the_tool_finds_files_that_are_written_in_place(tmp_path):
    words = [sys.executable, "-c", _BROKEN, str(ROOT), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["found"]), (
        done.stdout + done.stderr
    )


def test_content_and_name_are_on_the_disk_before_a_write_counts(tmp_path, monkeypatch):
    synced, replace = [], os.replace

    def note(number):
        path = Path(f"/proc/self/fd/{number}").readlink()
        synced.append(f"{path.suffix} of {path.stat().st_size}" if path.is_file() else str(path))

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(
        os, "replace", lambda *names: (synced.append("replace"), replace(*names))[1]
    )
    with atomic_write(tmp_path / "note") as file:
        file.write(b"x")
    assert synced == [".part of 1", "replace", str(tmp_path)]


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = platform.node()
    left = tmp_path / f".model.{here}.{dead.pid}.part"
    others = [
        *(f".model.{here}.{os.getppid()}.part", f".model.elsewhere.{dead.pid}.part"),
        *(f".model2.{here}.{dead.pid}.part", f".model.{here}.notes.part", "model.part"),
    ]
    for name in (left.name, *others):
        (tmp_path / name).touch()
    checkpoints.save({"epoch": 1}, tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"model", *others}


@pytest.mark.parametrize("nth", [1, 4, 9, 14])
def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(
    words, tmp_path, monkeypatch, capsys, nth
):
    assert train.main(words(out="whole")) == 0
    fsync, calls = os.fsync, []

    def full(number):
        calls.append(number)
        if len(calls) >= nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    capsys.readouterr()
    assert train.main(words()) == 2
    said = capsys.readouterr().err
    assert said == (
        "error: No space left on device; free some space, or give another --output-dir\n"
    )
    assert not list((tmp_path / "out").rglob(".*"))
    for path in (tmp_path / "out").rglob("*pth.tar*"):
        checkpoints.load(path)
    monkeypatch.setattr(os, "fsync", fsync)
    assert train.main(words()) == 0
    assert same_checkpoints(tmp_path / "out", tmp_path / "whole")


def test_a_checkpoint_is_there_before_it_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save_checkpoint({"state_dict": {}, "epoch": 1}, tmp_path)
    monkeypatch.setattr(checkpoints, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint({"state_dict": {}, "epoch": 2}, tmp_path)
    assert last_checkpoint_name(tmp_path) == "model.pth.tar-1"


def test_a_disk_that_fills_up_while_torch_writes_is_told_as_such(tmp_path):
    path = tmp_path / "model"
    checkpoints.save({"w": torch.zeros(10)}, path)
    code = (
        "import resource, sys, torch\n"
        "from anchoropt_plugin.files import checkpoints\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "checkpoints.save({'w': torch.zeros(10000)}, sys.argv[1])\n"
    )
    words = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "OSError: [Errno 27] File too large"
    assert checkpoints.load(path)["w"].shape == (10,)
    assert list(tmp_path.iterdir()) == [path]


class Stopped(Pair):
    """A run that gets SIGTERM in its second epoch, as from a batch system."""

    def forward_backward(self, batch):
        if self.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward_backward(batch)


def test_sigterm_says_how_to_resume(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "Pair", Stopped)
    assert train.main(words()) == 143
    said = capsys.readouterr().err
    assert said == (
        "interrupted; the same command resumes from the last checkpoint (see "
        "TRAIN.CHECKPOINT_FREQ), or starts again if there is none\n"
    )
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "Pair", Pair)
    assert train.main(words()) == 0
    assert "Previous epoch: 1" in capsys.readouterr().out
    assert train.main(words(out="whole")) == 0
    assert same_checkpoints(tmp_path / "out", tmp_path / "whole")


def test_a_handler_of_sigterm_that_is_there_already_stays():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        assert status_of(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [1]


class LosesAWorker(Pair):
    def forward_backward(self, batch):
        for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        return super().forward_backward(batch)


class LosesAWorkerInAStep(LosesAWorker):
    """The system reports the death before the end of the step."""

    def forward_backward(self, batch):
        loss = super().forward_backward(batch)
        time.sleep(1)
        return loss


class LosesAWorkerInABatch(Pair):
    """The worker's connection is closed before the system reports its death."""

    def build_data_loader(self):
        super().build_data_loader()

        def closed(*_):
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

        self.train_loader_x.collate_fn = closed
        self.train_loader_x.num_workers = 0


class LosesAWorkerLate(LosesAWorkerInABatch):
    """The system reports the death long after the connection is closed."""

    kept = None  # otherwise the iterator ends its worker before the death is reported

    def build_data_loader(self):
        super().build_data_loader()

        class Batches(_MultiProcessingDataLoaderIter):
            def _try_get_data(self, timeout=0):
                LosesAWorkerLate.kept = self
                kill = self._workers[0].pid, signal.SIGKILL
                threading.Timer(0.5, os.kill, kill).start()
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

        loader = self.train_loader_x
        loader.num_workers, loader.collate_fn = 1, default_collate
        loader._get_iterator = lambda: Batches(loader)


LOST = [LosesAWorker, LosesAWorkerInAStep, LosesAWorkerInABatch, LosesAWorkerLate]


@pytest.mark.parametrize("trainer", LOST)
def test_a_worker_process_that_is_killed_is_one_line(words, monkeypatch, capsys, trainer):
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "Pair", trainer)
    keys = ["DATALOADER.NUM_WORKERS", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "1"]
    assert train.main(words(*keys)) == 2
    time.sleep(1 if LosesAWorkerLate.kept else 0)  # nothing may be raised later
    LosesAWorkerLate.kept = None
    said = capsys.readouterr().err
    assert said.startswith("error: DataLoader worker ")
    assert "To resume from the last checkpoint, run" in said and "NUM_WORKERS in another" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(("final", "saves"), [("last_step", 6), ("best_val", 10)])
def test_a_kill_between_the_checkpoints_of_two_models(words, tmp_path, monkeypatch, final, saves):
    # The second of three epochs is the best one.
    monkeypatch.setattr(Pair, "test", lambda self, split="": (60.0, 70.0, 65.0)[self.epoch])
    keys = ["TEST.FINAL_MODEL", final]
    assert train.main(words(*keys, out="whole")) == 0
    for nth in range(2, saves + 1):
        save, calls = checkpoints.save, []

        def stop(*args, save=save, calls=calls, nth=nth):
            calls.append(1)
            if len(calls) == nth:
                raise KeyboardInterrupt
            save(*args)

        monkeypatch.setattr(checkpoints, "save", stop)
        assert train.main(words(*keys, out=f"out{nth}")) == 130
        monkeypatch.setattr(checkpoints, "save", save)
        assert train.main(words(*keys, out=f"out{nth}")) == 0
        assert same_checkpoints(tmp_path / f"out{nth}", tmp_path / "whole"), nth


def test_the_newest_checkpoint_that_all_models_have(tmp_path):
    for name, epochs in (("a", (1, 2)), ("b", (1,))):
        (tmp_path / name).mkdir()
        for epoch in epochs:
            (tmp_path / name / f"model.pth.tar-{epoch}").touch()
        (tmp_path / name / "checkpoint").write_text(f"model.pth.tar-{epochs[-1]}\n")
    folders = [tmp_path / "a", tmp_path / "b"]
    assert (
        newest_common_checkpoint(folders)
        == newest_common_checkpoint(folders[::-1])
        == "model.pth.tar-1"
    )
    (tmp_path / "b" / "model.pth.tar-2").touch()
    assert newest_common_checkpoint(folders) == "model.pth.tar-2"


@pytest.mark.parametrize("text", ["", "../model.pth.tar-1", "/etc/passwd", "a\0b", "a\nb"])
def test_what_checkpoint_names_lies_beside_it(tmp_path, text):
    (tmp_path / "checkpoint").write_text(text)
    with pytest.raises(UserError, match="not the name of a file in its folder"):
        last_checkpoint_name(tmp_path)


def test_the_scaler_of_amp_goes_on_too(words, tmp_path):
    assert train.main(words()) == 0
    saved = checkpoints.load(tmp_path / "out/first/model.pth.tar-2")["scaler"]["scale"]
    trainer = trainer_of(words())
    for name in ("first", "second"):
        (tmp_path / "out" / name / "checkpoint").write_text("model.pth.tar-2\n")
    assert trainer.scaler.get_scale() != saved
    assert trainer.resume_model_if_exist(str(tmp_path / "out")) == 2
    assert trainer.scaler.get_scale() == saved


@pytest.mark.parametrize("trainer", ["CoOp", "CoOp_AnchorOPT"])
def test_a_record_is_there_before_the_checkpoint_is(words, tmp_path, monkeypatch, trainer):
    keys = ["TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "1", "OPTIM.MAX_EPOCH", "1"]
    records = {"classes.json", "config.yaml"}
    if trainer == "CoOp_AnchorOPT":
        records.add("anchoropt.json")
        # The train.py of another repository writes no record.
        monkeypatch.setattr(train, "write_record", lambda *_: None)
    there = []
    save = checkpoints.save

    def note(state, path):
        if Path(path).parent.name == "prompt_learner":
            there.append(records <= {file.name for file in (tmp_path / "out").iterdir()})
        save(state, path)

    monkeypatch.setattr(checkpoints, "save", note)
    assert train.main(words(*keys, trainer=trainer)) == 0
    assert there == [True]


def test_the_temperature_is_part_of_the_model():
    one, other = (AnchorPositionModule(2, torch.ones(1, 4), relaxation="soft") for _ in range(2))
    one.temperature = 0.25
    other.load_state_dict(one.state_dict())
    assert other.temperature == 0.25
    assert torch.equal(one.eval().matrix(), other.eval().matrix())
