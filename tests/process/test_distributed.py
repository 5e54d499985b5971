"""Several processes: the results of one process; one writes; a dead one ends the run."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import train
from anchoropt_plugin import AnchorPositionModule, UserError, accelerate, anchoropt, fast_text
from anchoropt_plugin.encoders.clip_models import load_clip, tokenize
from anchoropt_plugin.files.predictions import PREDICTIONS, read_predictions
from anchoropt_plugin.process import data_parallel, distributed
from anchoropt_plugin.process.gradients import GradientAverage
from anchoropt_plugin.process.randomness import set_random_seed
from anchoropt_plugin.training.settings import AnchorOPTConfig
from dassl.engine import TRAINER_REGISTRY, build_trainer
from tests.process.several_processes import together
from trainers.coop import CoOp
from trainers.prompted_clip import TextEncoder

ROOT = Path(train.__file__).parent
GUMBEL = ("TRAINER.ANCHOROPT.POSITION", "gumbel", "TRAINER.ANCHOROPT.GUMBEL_TEMP", "0.5")
PLAIN = ("INPUT.TRANSFORMS", "['normalize']")
SPLIT = ("TRAINER.ANCHOROPT.SPLIT_CLASSES", "True")
HOSTS = {
    "CoOp": (),
    "CoCoOp_AnchorOPT": (*SPLIT, "TRAINER.ANCHOROPT.ANCHOR_CE_WEIGHT", "1.0"),
    "MaPLe_AnchorOPT": (*SPLIT, *GUMBEL),
    "DePT": SPLIT,
}
"""Hosts with all features that random numbers or split classes could break."""


def words_of(name, data, out, *opts):
    """Return a command of three steps an epoch, of 6 images each: 4 processes get 1, 2, 1, 2."""
    return [
        *("--root", str(data), "--output-dir", str(out), "--trainer", name, "--seed", "1"),
        *("--dataset-config-file", str(ROOT / "configs/datasets/digits.yaml")),
        *("--config-file", str(ROOT / f"configs/trainers/{name.partition('_')[0]}/tiny.yaml")),
        *("DATASET.NUM_SHOTS", "4", "DATASET.SUBSAMPLE_CLASSES", "base", "USE_CUDA", "False"),
        *("DATALOADER.TRAIN_X.BATCH_SIZE", "6", "OPTIM.MAX_EPOCH", "2", "OPTIM.WARMUP_EPOCH", "0"),
        *("TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "3", "TRAIN.PRINT_FREQ", "1", *opts),
    ]


def cfg_of(*args):
    return train.setup_cfg(train.build_parser().parse_args(words_of(*args)))


def weights(trainer):
    models = trainer._models.items()
    return {
        f"{name}: {key}": value.detach().clone()
        for name, model in models
        for key, value in model.named_parameters()
        if value.requires_grad
    }


def trained(cfg, epochs=None):
    set_random_seed(cfg.SEED + distributed.rank())  # ranks agree on the main one's
    trainer = build_trainer(cfg)
    if epochs:
        trainer.max_epoch = epochs
    trainer.train()
    return trainer


def train_hosts(data, out):
    """Return the trained weights and the test accuracy of all hosts."""
    found = {}
    for name, opts in HOSTS.items():
        train.setup_logger(str(out / name))
        cache = str(out / name / "anchors")
        opts = (*opts, *PLAIN, "TRAINER.ANCHOROPT.ANCHOR_CACHE", cache)
        trainer = trained(cfg_of(name, data, out / name, *opts))
        found[name] = weights(trainer), trainer.test()
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    stdout = sys.stdout
    try:
        return train_hosts(data, out), out
    finally:
        sys.stdout = stdout


def log_lines(folder):
    """Return losses, accuracies and results in the log, without times."""
    text = (folder / "log.txt").read_text()
    return re.findall(r"(?:loss \S+|acc \S+|^\*.*)", text, re.MULTILINE)


@pytest.mark.parametrize("n", [2, 4])
def test_training_equals_one_process(alone, data, n, tmp_path):
    (want, folder), (results, statuses) = alone, together(n, train_hosts, tmp_path, data, tmp_path)
    assert statuses == [0] * n
    for name in HOSTS:
        for rank in range(n):
            got, accuracy = results[rank][name]
            assert accuracy == want[name][1], name
            for key, value in want[name][0].items():
                error = (got[key] - value).norm() / value.norm().clamp(min=1e-12)
                assert error < 1e-5, (name, rank, key, error)
                assert torch.equal(got[key], results[0][name][0][key]), "all have the same"
        lines = log_lines(tmp_path / name)
        assert len(lines) == len(log_lines(folder / name)) > 10
        for line, expected in zip(lines, log_lines(folder / name), strict=True):
            assert_near(line, expected)
        got, expected = (read_predictions(out / name / PREDICTIONS) for out in (tmp_path, folder))
        assert (got.images, got.truth) == (expected.images, expected.truth), "in the same order"
        assert got.probability == pytest.approx(expected.probability, abs=1e-4)
        written = {path.relative_to(tmp_path) for path in (tmp_path / name).rglob("*")}
        there = {path.relative_to(folder) for path in (folder / name).rglob("*")}
        assert names(written) == names(there), "one process writes, once"


def names(paths):
    passing = "tfevents", ".lock"  # the lock of a process that has just ended, too
    return sorted(str(path) for path in paths if not any(x in path.name for x in passing))


def assert_near(line, expected):
    number = r"[-+]?\d+\.\d+"
    assert re.sub(number, "", line) == re.sub(number, "", expected)
    got, want = (list(map(float, re.findall(number, text))) for text in (line, expected))
    assert got == pytest.approx(want, abs=2e-4)


def augmented(data, out):
    """Train two epochs with random views, in one run and in two; return weights and views."""
    views, tested = [], []

    class Watching(CoOp):
        def build_model(self):
            super().build_model()
            with torch.no_grad():
                self.model.prompt_learner.ctx.add_(distributed.rank())  # as on another machine

        def model_inference(self, images):
            tested.append(len(images))
            return super().model_inference(images)

        def forward_backward(self, batch):
            views.append(batch["img"].sum().item())
            return super().forward_backward(batch)

    TRAINER_REGISTRY._obj_map["CoOp"] = Watching
    opts = ("TRAIN.CHECKPOINT_FREQ", "1", "TEST.NO_TEST", "True")
    trainer = trained(cfg_of("CoOp", data, out / "at_once", *opts))
    at_once = weights(trainer)
    trainer.test()
    n_views = len(views)
    cfg = cfg_of("CoOp", data, out / "in_two", *opts)
    trained(cfg, epochs=1)
    return at_once, weights(trained(cfg)), views[:n_views], views[n_views:], tested


def test_random_views_and_resuming(data, tmp_path):
    results, statuses = together(2, augmented, tmp_path, data, tmp_path)
    assert statuses == [0, 0]
    one, other = results
    for key, value in one[0].items():
        assert torch.equal(other[0][key], value), "ranks stay together, whatever each has drawn"
        assert torch.equal(one[1][key], value), "a run that went on is the run at once"
    assert one[2] != other[2] and one[2] == one[3]
    assert (one[4], other[4]) == ([100, 70], [100]), "they take turns at a test"


def draw_position():
    """Return the position matrix drawn by processes with different random numbers."""
    distributed.start(use_cuda=False)
    torch.manual_seed(distributed.rank())
    module = AnchorPositionModule(4, torch.ones(1, 2), relaxation="gumbel", init=0.0)
    return module.draw().detach(), torch.rand(())


def test_one_position_matrix_for_all(tmp_path):
    ((one, drawn), (other, drawn_there)), _ = together(2, draw_position, tmp_path)
    assert torch.equal(one, other) and drawn != drawn_there


def encode_split(n_classes, chunk):
    """Return features, prompt gradient and bytes saved for the backward pass; classes are split."""
    distributed.start(use_cuda=False)
    clip = load_clip("tiny")
    tokens = tokenize([f"a photo of a {'big ' * (i % 3)}dog." for i in range(n_classes)])
    frame = clip.token_embedding(tokens).detach()
    ctx = frame[0, 1:4].clone().requires_grad_()
    encoder = TextEncoder(clip).requires_grad_(False)
    (fast,) = accelerate(encoder)
    fast.split, fast.chunk = True, chunk
    prompts = torch.cat([frame[:, :1], ctx.expand(n_classes, -1, -1), frame[:, 4:]], 1)
    encoder(prompts, tokens)  # checks itself
    saved = {}
    weights = {parameter.data_ptr() for parameter in encoder.parameters()}

    def save(tensor):
        if tensor.data_ptr() not in weights:
            saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        features = encoder(prompts, tokens)
    # Each process has a loss of its own, over two or three of five images.
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(5, *features.shape, generator=generator)
    mine = targets[distributed.part_of(5)]
    distributed.set_batch_fraction(len(mine) / 5)
    GradientAverage([ctx])
    loss = ((features.pow(2) - mine).square()).mean()
    loss.backward()
    return features.detach(), ctx.grad.clone(), sum(saved.values())


@pytest.mark.parametrize(("n", "n_classes", "chunk"), [(2, 101, 0), (4, 34, 3), (4, 3, 0)])
def test_classes_split_over_processes(n, n_classes, chunk, tmp_path):
    features, gradient, saved = encode_split(n_classes, chunk)
    results, statuses = together(n, encode_split, tmp_path, n_classes, chunk)
    assert statuses == [0] * n
    for got, grad, memory in results:
        torch.testing.assert_close(got, features, rtol=1e-5, atol=1e-5)
        assert (grad - gradient).norm() / gradient.norm() < 1e-5
        if not chunk and n_classes > n:
            assert memory < 1.2 * saved / n, "text memory falls as 1 / n"


def step_twice():
    """Run two backward passes, with parameters that one process or none reaches."""
    distributed.start(use_cuda=False)
    rank = distributed.rank()
    both, one, none = (nn.Parameter(torch.ones(2)) for _ in range(3))
    GradientAverage([both, one, none])
    (both.sum() * (rank + 1) + (one.sum() * 4 if rank else 0)).backward()
    (both.sum() * 10 * rank).backward()
    bad = nn.Parameter(torch.ones(2))
    GradientAverage([bad])
    (bad.sum() * (float("inf") if rank else 1)).backward()
    return both.grad, one.grad, none.grad, bad.grad


def test_gradients_are_those_of_the_whole_batch(tmp_path):
    results, statuses = together(2, step_twice, tmp_path)
    assert statuses == [0, 0]
    for both, one, none, bad in results:
        assert both.tolist() == [6.5, 6.5]
        assert one.tolist() == [2, 2] and none is None
        assert not torch.isfinite(bad).any(), "an infinity reaches all, as GradScaler needs"


def dying(data, out, how):
    """Return the status of train.py if rank 1 ends at its second step."""

    class Dying(CoOp):
        def forward_backward(self, batch):
            if distributed.rank() == 1 and self.batch_idx == 1:
                if how == "killed":
                    os._exit(9)
                if how == "silent":
                    time.sleep(3)
                    os._exit(9)
                raise UserError("the image x.jpg is missing")
            if how == "silent" and self.batch_idx == 1:
                warnings.simplefilter("ignore")  # not a public name
                timeout = datetime.timedelta(seconds=1)
                torch.distributed.distributed_c10d._set_pg_timeout(timeout)
            return super().forward_backward(batch)

    TRAINER_REGISTRY._obj_map["CoOp"] = Dying
    errors = open(out / f"stderr{distributed.rank()}", "w", buffering=1)  # noqa: SIM115, PTH123
    sys.stderr = errors
    return train.main(words_of("CoOp", data, out / "out"))


@pytest.mark.parametrize("how", ["killed", "fails", "silent"])
def test_a_dead_process_ends_the_run(data, how, tmp_path):
    results, statuses = together(2, dying, tmp_path, data, tmp_path, how)
    message = (tmp_path / "stderr0").read_text()
    assert results[0] == 2 and statuses[0] == 0, "rank 0 comes to an end by itself"
    assert message.startswith("error in rank 0 of 2: lost the other processes")
    assert message.count("\n") == 1
    if how == "fails":
        assert (tmp_path / "stderr1").read_text() == (
            "error in rank 1 of 2: the image x.jpg is missing\n"
        )


def test_split_classes_needs_the_fast_text_branch():
    with pytest.raises(UserError, match=r"SPLIT_CLASSES .* needs FAST_TEXT True"):
        AnchorOPTConfig(split_classes=True, fast_text=False)


def test_a_seed_is_needed(data, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_launched", lambda: True)
    with pytest.raises(UserError, match="give --seed"):
        build_trainer(cfg_of("CoOp", data, tmp_path, "SEED", "-1"))


def test_too_small_batches(data, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 8)
    loader = build_trainer(cfg_of("CoOp", data, tmp_path)).train_loader_x
    with pytest.raises(UserError, match="8 processes cannot share a batch of 6"):
        next(loader._parts())


class Parallel(CoOp):
    """A host that wraps its model on several GPUs, like public hosts."""

    def build_model(self):
        super().build_model()
        if torch.cuda.device_count() > 1:
            self.model = nn.DataParallel(self.model)
            self.model.device_ids = [0, 1]  # which it would find


def test_data_parallel_is_refused(data, tmp_path, monkeypatch):
    registry = dict(TRAINER_REGISTRY._obj_map)
    monkeypatch.setattr(TRAINER_REGISTRY, "_obj_map", registry)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    # By NVML, which the fork server of experiments asks, the number of devices would decide this.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    anchoropt(node="COOP")(Parallel)
    cfg = cfg_of("CoOp", data, tmp_path)
    message = "Parallel wraps PromptedCLIP in nn.DataParallel.*torchrun --nproc_per_node=2"
    with pytest.raises(UserError, match=message):
        registry["Parallel_AnchorOPT"](cfg)
    with pytest.raises(UserError, match="torchrun"):
        fast_text(type("Parallel", (Parallel,), {}))(cfg)
    # A process of several has one GPU, so what the host wrapped is unwrapped.
    monkeypatch.setattr(data_parallel, "is_launched", lambda: True)
    wrapped = nn.DataParallel(nn.Linear(2, 2))
    assert data_parallel.without_data_parallel(wrapped) is wrapped.module


def test_an_installed_dassl_is_named(data, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "start", lambda use_cuda: None)  # Dassl's trainers have none
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="Dassl does not support torchrun"):
        build_trainer(cfg_of("CoOp_AnchorOPT", data, tmp_path))


def test_torchrun(alone, data, tmp_path):
    words = words_of("CoOp", data, tmp_path / "out", *PLAIN, "DATALOADER.NUM_WORKERS", "1")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(ROOT / "train.py"), *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Finish training") == 1
    assert done.stdout == (tmp_path / "out" / "log.txt").read_text()
    assert [path.name for path in (tmp_path / "out").glob("log*")] == ["log.txt"]
    assert log_lines(tmp_path / "out")[-4:] == log_lines(alone[1] / "CoOp")[-4:]


@pytest.mark.parametrize("is_launched", [True, False])
def test_a_process_of_torchrun_ends_before_python_frees_its_objects(is_launched):
    script = """
        import atexit
        from anchoropt_plugin.process import distributed

        class Thread:
            def __del__(self):
                print("freed", flush=True)

        kept = Thread()
        atexit.register(print, "left")
        distributed.leave(3)
    """
    launched = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "",
        "MASTER_PORT": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **(launched if is_launched else {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.split() == (["left"] if is_launched else ["left", "freed"])
