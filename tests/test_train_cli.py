"""train.py: flags, order of merging, what it prints and writes, and errors in one line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

import train
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer

CONFIGS = Path(train.__file__).parent / "configs"
DIGITS = str(CONFIGS / "datasets" / "digits.yaml")
TINY = str(CONFIGS / "trainers" / "CoOp" / "tiny.yaml")


class Probe(TrainerX):
    """A linear model, so that a run takes a second."""

    def build_model(self):
        self.model = nn.Sequential(nn.Flatten(), nn.LazyLinear(self.num_classes))
        self.model(torch.zeros(1, 3, *self.cfg.INPUT.SIZE))
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("probe", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        images, labels, _ = self.parse_batch_train(batch)
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(logits, labels)[0].item()}


class Diverges(Probe):
    def forward_backward(self, batch):
        self.model_backward_and_update(torch.tensor(float("nan")))


class Interrupted(Probe):
    def forward_backward(self, batch):
        raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for trainer in (Probe, Diverges, Interrupted):
        monkeypatch.setitem(TRAINER_REGISTRY._obj_map, trainer.__name__, trainer)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture
def argv(root, tmp_path):
    """A short run of Probe on 4 shots of Digits; returns the words with others in between."""

    def build(*flags, opts=(), trainer="Probe"):
        return [
            *("--root", root, "--output-dir", str(tmp_path / "out"), "--trainer", trainer),
            *("--dataset-config-file", DIGITS, "--config-file", TINY),
            *flags,
            *("DATASET.NUM_SHOTS", "4", "OPTIM.MAX_EPOCH", "2", "USE_CUDA", "False", *opts),
        ]  # fmt: skip

    return build


def cfg_of(*words):
    return train.setup_cfg(train.build_parser().parse_args(words))


def test_defaults():
    cfg = cfg_of()
    assert (cfg.OUTPUT_DIR, cfg.SEED, cfg.DATASET.SUBSAMPLE_CLASSES) == ("./output", -1, "all")
    assert cfg.TRAINER.COOP == {
        "N_CTX": 16, "CSC": False, "CTX_INIT": "", "PREC": "fp16", "CLASS_TOKEN_POSITION": "end",
    }  # fmt: skip
    assert cfg.TRAINER.COCOOP == {"N_CTX": 16, "CTX_INIT": "", "PREC": "fp16"}
    assert cfg.TRAINER.MAPLE == {
        "N_CTX": 2, "CTX_INIT": "a photo of a", "PREC": "fp16", "PROMPT_DEPTH": 9,
    }  # fmt: skip
    assert cfg.TRAINER.ATPROMPT == {
        "USE_ATPROMPT": False, "ATT_NUM": 0, "N_ATT1": 4, "N_ATT2": 4, "N_ATT3": 4,
        "ATT1_TEXT": "none", "ATT2_TEXT": "none", "ATT3_TEXT": "none",
    }  # fmt: skip
    assert cfg.TRAINER.ANCHOROPT.USE_ANCHOROPT is False
    with pytest.raises(AttributeError):
        cfg.SEED = 3


def test_order_of_merging(tmp_path):
    data_set, method = tmp_path / "data.yaml", tmp_path / "method.yaml"
    data_set.write_text("SEED: 1\nOUTPUT_DIR: data\nVERSION: 2\nTRAINER: {NAME: data}\n")
    method.write_text("SEED: 2\nOUTPUT_DIR: method\nTRAINER: {NAME: method}\n")
    flags = ["--dataset-config-file", str(data_set), "--config-file", str(method), "--seed", "3"]
    cfg = cfg_of(*flags, "--trainer", "flag", "TRAINER.NAME", "pair")
    assert cfg.VERSION == 2, "only the data set file has it"
    assert cfg.OUTPUT_DIR == "method", "the method file comes after it"
    assert cfg.SEED == 3, "a flag comes after both"
    assert cfg.TRAINER.NAME == "pair", "KEY VALUE comes last"


def test_flags():
    cfg = cfg_of(
        *("--root", "r", "--output-dir", "o", "--resume", "s", "--seed", "0"),
        *("--source-domains", "a", "b", "--target-domains", "c", "--transforms", "normalize"),
        *("--trainer", "CoOp", "--backbone", "RN50", "--head", "mlp"),
        *("OPTIM.LR", "1", "TRAINER.COOP.N_CTX", "4"),
    )
    assert (cfg.DATASET.ROOT, cfg.OUTPUT_DIR, cfg.RESUME, cfg.SEED) == ("r", "o", "s", 0)
    assert cfg.DATASET.SOURCE_DOMAINS == ["a", "b"]
    assert cfg.DATASET.TARGET_DOMAINS == ["c"]
    assert cfg.INPUT.TRANSFORMS == ["normalize"]
    assert (cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME, cfg.MODEL.HEAD.NAME) == (
        "CoOp", "RN50", "mlp",
    )  # fmt: skip
    assert (cfg.OPTIM.LR, cfg.TRAINER.COOP.N_CTX) == (1.0, 4)


def parsed(log, end_signal):
    """What the public parse_test_res.py finds in a log."""
    lines = [line.strip() for line in log.read_text().splitlines()]
    after = lines[lines.index(end_signal) :]
    found = [re.search(r"\* accuracy: ([\.\deE+-]+)%", line) for line in after]
    return [float(match.group(1)) for match in found if match]


def test_a_run_and_its_evaluation(argv, tmp_path, capsys):
    stdout = sys.stdout
    assert train.main(argv("--seed", "0")) == 0
    assert sys.stdout is stdout
    out = tmp_path / "out"
    log = out / "log.txt"
    printed = capsys.readouterr().out
    assert printed == log.read_text()
    for text in ("Setting fixed seed: 0", "** Arguments **", "seed: 0", "** Config **",
                 "** System info **", "Elapsed: "):  # fmt: skip
        assert text in printed
    (accuracy,) = parsed(log, "Finish training")
    assert (out / "probe" / "checkpoint").read_text() == "model.pth.tar-2\n"

    flags = ["--eval-only", "--model-dir", str(out), "--load-epoch", "2"]
    words = argv("--seed", "1", *flags)
    words[words.index(str(out))] = str(tmp_path / "test")
    assert train.main(words) == 0
    assert parsed(tmp_path / "test" / "log.txt", "=> result") == [accuracy]
    assert not (tmp_path / "test" / "probe").exists()


def test_the_same_command_goes_on_where_it_stopped(argv, tmp_path, capsys):
    assert train.main(argv("--seed", "1")) == 0
    capsys.readouterr()
    assert train.main(argv("--seed", "1", opts=("OPTIM.MAX_EPOCH", "3"))) == 0
    out = capsys.readouterr().out
    assert "Previous epoch: 2" in out
    assert "epoch [3/3]" in out
    assert "epoch [2/3]" not in out
    assert len(list((tmp_path / "out").glob("log.txt*"))) == 2


def test_no_train(argv, tmp_path, capsys):
    assert train.main(argv("--no-train")) == 0
    assert "epoch [" not in capsys.readouterr().out
    assert not (tmp_path / "out" / "probe").exists()


def test_seed_zero_is_a_seed(argv, tmp_path):
    weights = []
    for name in ("first", "second"):
        words = argv("--seed", "0")
        words[words.index(str(tmp_path / "out"))] = str(tmp_path / name)
        assert train.main(words) == 0
        state = torch.load(tmp_path / name / "probe" / "model.pth.tar-2", weights_only=True)
        weights.append(state["state_dict"]["1.weight"])
    assert torch.equal(*weights)


def error_of(capsys, words):
    """The one line a wrong command prints."""
    assert train.main(words) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(r"error: [^\n]+\n", printed.err)
    return printed.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trainer", "CoOP_AnchorOPT"], r"--trainer is .* \(did you mean 'CoOp_AnchorOPT'\?\)"),
        (["--trainer", "Nothing"], "available: .*CoOp, "),
        (["DATASET.NAME", "digit"], r"DATASET\.NAME is 'digit' \(did you mean 'Digits'\?\)"),
        (["--root", ""], "--root is not given"),
        (["--root", "/nowhere", "DATASET.NAME", "ImageFolder"], "--root /nowhere is not a folder"),
        (["--resume", "/nowhere"], "--resume /nowhere is not a folder"),
        (["--eval-only", "--model-dir", "/nowhere"], "--model-dir /nowhere is not a folder"),
        (["--config-file", "none.yaml"], r"config file none\.yaml: No such file"),
        (["OPTIM.RL", "1"], r"unknown config key OPTIM\.RL \(did you mean 'OPTIM\.LR'\?\)"),
        (["OPTIM.LR", "fast"], "takes a float, but 'fast' is a str"),
        (["OPTIM.LR"], "has no value"),
        (["OPTIM.LR", "1", "--seed", "1"], "flags come before KEY VALUE pairs: move --seed"),
    ],
)
def test_a_wrong_command_writes_nothing(argv, tmp_path, capsys, flags, message):
    words = argv()
    first_pair = words.index("DATASET.NUM_SHOTS")
    words = words[:first_pair] + flags
    assert re.search(message, error_of(capsys, words))
    assert list(tmp_path.iterdir()) == []


def test_errors_during_a_run(argv, tmp_path, capsys):
    assert "Loss is infinite or NaN!" in error_of(capsys, argv(trainer="Diverges"))
    assert "SUBSAMPLE_CLASSES" in error_of(capsys, argv(opts=("DATASET.SUBSAMPLE_CLASSES", "old")))
    flags = ["--eval-only", "--model-dir", str(tmp_path / "out")]
    assert "no model at" in error_of(capsys, argv(*flags))
    (tmp_path / "file").touch()
    words = argv()
    words[words.index(str(tmp_path / "out"))] = str(tmp_path / "file" / "out")
    assert "cannot write to" in error_of(capsys, words)


def test_ctrl_c(argv, capsys):
    assert train.main(argv(trainer="Interrupted")) == 130
    assert capsys.readouterr().err.startswith("interrupted; ")


def test_help_and_unknown_flags(capsys):
    with pytest.raises(SystemExit, match="0"):
        train.main(["--help"])
    text = capsys.readouterr().out
    assert "CoOp_AnchorOPT" in text
    assert "KEY VALUE" in text
    with pytest.raises(SystemExit, match="2"):
        train.main(["--trainr", "CoOp"])


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.rglob("trainers/CoOp/*.yaml")), ids=lambda p: p.stem
)
def test_every_config_of_coop_merges(path):
    cfg = cfg_of("--config-file", str(path))
    given = yaml.safe_load(path.read_text())
    backbone, loader = given["MODEL"]["BACKBONE"], given["DATALOADER"]["TRAIN_X"]
    assert backbone["NAME"] == cfg.MODEL.BACKBONE.NAME
    assert loader["BATCH_SIZE"] == cfg.DATALOADER.TRAIN_X.BATCH_SIZE
    if "OPTIM" in given:
        assert (cfg.OPTIM.LR, cfg.OPTIM.WARMUP_CONS_LR) == (0.002, 1e-5)


@pytest.mark.parametrize("stem", ["digits", "shapes", "image_folder"])
def test_every_config_of_our_data_sets_names_one(stem):
    cfg = cfg_of("--dataset-config-file", str(CONFIGS / "datasets" / f"{stem}.yaml"))
    assert cfg.DATASET.NAME.lower() == stem.replace("_", "")
    assert cfg.DATASET.NAME in train.DATASET_REGISTRY.registered_names()
