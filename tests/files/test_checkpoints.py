"""Checkpoints: all formats are read, no code runs, writes are whole or not at all."""

from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from anchoropt_plugin import UserError
from anchoropt_plugin.dassl_compat.data.datasets import Datum
from anchoropt_plugin.datasets.public_pickles import load_fewshot_pickle
from anchoropt_plugin.files import checkpoints
from dassl.utils import load_checkpoint

ran: list[str] = []


class Hostile:
    """An object that runs code when unpickled."""

    def __reduce__(self):
        return exec, (f"import {__name__} as here; here.ran.append('ran')",)


class Writes:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def published(tmp_path, legacy, **more):
    """Write a checkpoint like the CoOp family's: half precision, with a pickled scheduler."""
    context = nn.Parameter(torch.randn(4, 512).half())
    optimizer = torch.optim.SGD([context], lr=0.002, momentum=0.9)
    scheduler = CosineAnnealingLR(optimizer, 50)
    scheduler.last_epoch = 7
    checkpoint = {
        "state_dict": collections.OrderedDict(ctx=context.detach(), as_parameter=context),
        "epoch": 50,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"last_epoch": 1, "successor": scheduler},
        "val_result": None,
        **more,
    }
    path = tmp_path / "model.pth.tar-50"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
    return path, checkpoint


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_published_checkpoint(tmp_path, legacy):
    path, checkpoint = published(tmp_path, legacy)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    loaded = checkpoints.load(path)
    for name, value in checkpoint["state_dict"].items():
        assert torch.equal(loaded["state_dict"][name], value)
        assert loaded["state_dict"][name].dtype == torch.float16
    assert loaded["optimizer"]["param_groups"][0]["lr"] == 0.002
    assert (loaded["epoch"], loaded["val_result"]) == (50, None)
    successor = loaded["scheduler"]["successor"]
    assert isinstance(successor, checkpoints.Foreign)
    assert successor.state["last_epoch"] == 7
    assert isinstance(successor.state["optimizer"], checkpoints.Foreign)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("at_top", [False, True], ids=["in a dict", "at the top"])
def test_a_hostile_checkpoint_runs_nothing(tmp_path, legacy, at_top):
    trace = tmp_path / "trace"
    path, _ = published(tmp_path, legacy, hook=Hostile(), other=[Writes(trace)])
    if at_top:
        torch.save(Writes(trace), path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UserError, match="a checkpoint is a dict"):
            checkpoints.load(path)
    else:
        assert isinstance(checkpoints.load(path)["hook"], checkpoints.Foreign)
    assert not ran
    assert not trace.exists()
    # The trap is a real one.
    pickle.loads(pickle.dumps(Writes(trace)))
    assert trace.exists()


def test_other_foreign_objects(tmp_path):
    holder = {
        "path": Path("a"),
        "default": collections.defaultdict(list, {1: [2]}),
        "counter": collections.Counter("aab"),
        "names": {"x", "y"},
        "dtype": torch.float16,
        "module": nn.Linear(1, 1),
        "deque": collections.deque([1, 2]),
        "w": torch.zeros(2),
    }
    torch.save(holder, tmp_path / "file")
    loaded = checkpoints.load(tmp_path / "file")
    for name in ("path", "default", "module", "deque"):
        assert isinstance(loaded[name], checkpoints.Foreign)
    for name in ("counter", "names", "dtype"):
        assert loaded[name] == holder[name]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_truncated_file_is_named(tmp_path, legacy):
    path, _ = published(tmp_path, legacy)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(
        UserError, match=r"cannot read the checkpoint .*model\.pth\.tar-50"
    ) as error:
        checkpoints.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps({"state_dict": {}})])
def test_a_foreign_file_is_named(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"notes\.txt is not a checkpoint"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"state_dict": 5}, "its state_dict is a int"),
        ({"state_dict": [torch.zeros(1)]}, "its state_dict is a list"),
        ({"state_dict": {"ctx": 5}}, "'ctx' in its state_dict is a int, not a tensor"),
        ({"state_dict": {"ctx": Path("a")}}, "'ctx' in its state_dict is a .*, not a tensor"),
        ({"state_dict": {3: torch.zeros(1)}}, "the key 3 in its state_dict is not a string"),
        ({"state_dict": {"ctx": torch.tensor([1.0, float("nan")])}}, "its ctx is not finite"),
        ({"state_dict": {"ctx": torch.tensor([float("inf")]).half()}}, "its ctx is not finite"),
        ({"ctx": torch.tensor([float("nan")])}, "its ctx is not finite"),
        ({"state_dict": {}, "epoch": "5"}, "its epoch is '5'"),
        ({"state_dict": {}, "epoch": -1}, "its epoch is -1"),
    ],
)
def test_an_unsound_checkpoint_is_refused(tmp_path, content, fault):
    torch.save(content, tmp_path / "model")
    with pytest.raises(UserError, match=f"model is a broken checkpoint: {fault}; copy it again"):
        checkpoints.load(tmp_path / "model")


@pytest.mark.parametrize("missing", ["state_dict", "epoch"])
def test_the_checkpoint_of_a_run_has_weights_and_an_epoch(tmp_path, missing):
    content = {"state_dict": {}, "epoch": 1}
    del content[missing]
    torch.save(content, tmp_path / "model")
    assert checkpoints.load(tmp_path / "model") == content
    with pytest.raises(UserError, match=f"model has no '{missing}'"):
        load_checkpoint(tmp_path / "model")


def test_the_epoch_in_the_name_of_a_file_is_that_of_its_weights(tmp_path):
    three, best = tmp_path / "model.pth.tar-3", tmp_path / "model-best.pth.tar"
    for path in (three, best):
        checkpoints.save({"state_dict": {}, "epoch": 1}, path)
    assert checkpoints.load(best)["epoch"] == 1
    with pytest.raises(UserError, match=r"tar-3 is named after epoch 3, but holds epoch 1: rename"):
        checkpoints.load(three)
    checkpoints.save({"state_dict": {}}, three)
    assert checkpoints.load(three) == {"state_dict": {}}


def test_missing_files_torchscript_and_bare_tensors(tmp_path):
    with pytest.raises(UserError, match=r"cannot open the checkpoint .*gone: No such file"):
        checkpoints.load(tmp_path / "gone")
    with pytest.raises(UserError, match=r"cannot open the checkpoint .*null byte"):
        checkpoints.load("a\0b")
    torch.save(torch.zeros(2), tmp_path / "tensor")
    with pytest.raises(UserError, match="holds a Tensor, but a checkpoint is a dict"):
        checkpoints.load(tmp_path / "tensor")
    torch.jit.script(nn.Linear(1, 1)).save(str(tmp_path / "script"))
    with pytest.raises(UserError, match=r"cannot read .*: it is a TorchScript archive"):
        checkpoints.load(tmp_path / "script")


class Unsavable:
    def __reduce__(self):
        raise RuntimeError("interrupted")


def test_a_write_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "model.pth.tar-1"
    checkpoints.save({"epoch": 1}, path)
    with pytest.raises(RuntimeError, match="interrupted"):
        checkpoints.save({"epoch": 2, "other": Unsavable()}, path)
    assert checkpoints.load(path)["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(OSError) as error:
        checkpoints.save({"epoch": 1}, tmp_path / "none/model.pth.tar-1")
    assert error.value.filename == str(tmp_path / "none/model.pth.tar-1")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_public_few_shot_file(tmp_path, protocol):
    path = tmp_path / "shot_1-seed_1.pkl"
    lists = {"train": [Datum("/data/a.jpg", 3, 0, "cat")], "val": []}
    path.write_bytes(pickle.dumps(lists, protocol=protocol))
    loaded = load_fewshot_pickle(path)
    assert loaded == {"train": [("/data/a.jpg", 3, 0, "cat")], "val": []}
    assert loaded["train"][0].classname == "cat"


@pytest.mark.parametrize(
    "payload",
    [
        Hostile(), {"train": [Hostile()]}, [1], {"train": [1]}, {"train": 5},
        *({"train": [Datum(*fields)]} for fields in (
            (5, 0, 0, "cat"), ("a.jpg", "0", 0, "cat"), ("a.jpg", 0, None, "cat"),
            ("a.jpg", 0, 0, ["cat"]), ("a.jpg", True, 0, "cat"),
        )),
    ],
)  # fmt: skip
def test_other_few_shot_files_are_refused(tmp_path, payload):
    path = tmp_path / "shot_1-seed_1.pkl"
    path.write_bytes(pickle.dumps(payload))
    with pytest.raises(UserError, match=r"shot_1-seed_1\.pkl is not a few-shot file"):
        load_fewshot_pickle(path)
    assert not ran
