"""train.py: flags, order of merging, output on the screen and in files, errors in one line."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

import train
from anchoropt_plugin.files.run_events import read_events
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer

from .trainers.runs import without_its_run

CONFIGS = Path(train.__file__).parent / "configs"
DIGITS = str(CONFIGS / "datasets" / "digits.yaml")
TINY = str(CONFIGS / "trainers" / "CoOp" / "tiny.yaml")


class Probe(TrainerX):
    """A linear model, for runs of a second."""

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


class Unwritable(Probe):
    def save_model(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # names no file


class Interrupted(Probe):
    """A trainer that is interrupted in the second epoch."""

    def forward_backward(self, batch):
        if self.epoch:
            raise KeyboardInterrupt
        return super().forward_backward(batch)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for trainer in (Probe, Diverges, Unwritable, Interrupted):
        monkeypatch.setitem(TRAINER_REGISTRY._obj_map, trainer.__name__, trainer)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture
def argv(root, tmp_path):
    """Return a function that builds the command line of a short run on 4 shots of Digits."""

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
    """Return the accuracies that the public parse_test_res.py finds in a log."""
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


def test_the_same_command_resumes(argv, tmp_path, capsys, monkeypatch):
    words = argv("--seed", "1", opts=("TRAIN.CHECKPOINT_FREQ", "1"), trainer="Interrupted")
    assert train.main(words) == 130
    capsys.readouterr()
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "Interrupted", Probe)
    assert train.main(words) == 0
    out = capsys.readouterr().out
    assert "Previous epoch: 1" in out
    assert "epoch [2/2]" in out
    assert "epoch [1/2]" not in out
    assert (tmp_path / "out" / "log.txt").read_text().count("Finish training") == 1
    words[words.index(str(tmp_path / "out"))] = str(tmp_path / "whole")
    words[words.index("Interrupted")] = "Probe"
    assert train.main(words) == 0
    states = [
        torch.load(tmp_path / run / "probe" / "model.pth.tar-2", weights_only=True)["state_dict"]
        for run in ("out", "whole")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DATASET.SUBSAMPLE_CLASSES", "new"),
        ("SEED", "2"),
        ("OPTIM.LR", "0.5"),
        ("OPTIM.MAX_EPOCH", "3"),
        ("MODEL.BACKBONE.NAME", "RN50"),
        ("TRAINER.ANCHOROPT.ANCHOR_WEIGHTS", "anchors"),
        ("DATALOADER.NUM_WORKERS", "2"),
        ("TEST.FINAL_MODEL", "best_val"),
    ],
)
@pytest.mark.parametrize("flag", ["--output-dir", "--resume"])
def test_the_folder_of_another_run_is_refused(argv, tmp_path, capsys, base_run, flag, key, value):
    before = {path: path.stat().st_mtime_ns for path in base_run.rglob("*")}
    words = argv("--seed", "1", flag, str(base_run), opts=(key, value))
    message = error_of(capsys, words)
    assert f"{base_run} holds a run with other settings: {key} was " in message
    assert f", now {value}" in message.replace("'", "")
    remedy = {"--output-dir": "give another --output-dir", "--resume": "leave --resume out"}
    assert remedy[flag] in message
    assert {path: path.stat().st_mtime_ns for path in base_run.rglob("*")} == before
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def base_run(root, tmp_path_factory):
    """Return the output folder of a finished run of Probe with seed 1."""
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRAINER_REGISTRY._obj_map, "Probe", Probe)
        assert train.main([
            *("--root", root, "--output-dir", str(folder), "--trainer", "Probe", "--seed", "1"),
            *("--dataset-config-file", DIGITS, "--config-file", TINY),
            *("DATASET.NUM_SHOTS", "4", "OPTIM.MAX_EPOCH", "2", "USE_CUDA", "False"),
        ]) == 0  # fmt: skip
    return folder


def rates(folder):
    return {e["epoch"]: e["lr"] for e in read_events(folder) if e["event"] == "epoch"}


def test_a_run_is_extended_after_one_word(argv, tmp_path, base_run, capsys):
    out = shutil.copytree(base_run, tmp_path / "out")
    longer = ("OPTIM.MAX_EPOCH", "5", "TRAIN.CHECKPOINT_FREQ", "1")
    words = argv("--seed", "1", opts=longer)
    said = error_of(capsys, words)
    assert (
        "MAX_EPOCH was 2, now 5: give another --output-dir, or OPTIM.EXTEND True to train" in said
    )
    words = argv("--seed", "1", opts=(*longer, "OPTIM.EXTEND", "True"))
    assert train.main(words) == 0
    assert "Previous epoch: 2" in capsys.readouterr().out
    whole = argv("--seed", "1", "--output-dir", str(tmp_path / "whole"), opts=longer)
    assert train.main(whole) == 0
    extended, long, short = rates(out), rates(tmp_path / "whole"), rates(base_run)
    assert [extended[e] for e in (3, 4, 5)] == [long[e] for e in (3, 4, 5)]
    assert [extended[e] for e in (1, 2)] == [short[e] for e in (1, 2)]
    # Killed in the fourth epoch, and resumed by the same command.
    (folder,) = (path.parent for path in out.glob("*/checkpoint"))
    last = (folder / "model.pth.tar-5").read_bytes()
    (folder / "model.pth.tar-5").unlink()
    (folder / "model.pth.tar-4").unlink()
    (folder / "checkpoint").write_text("model.pth.tar-3\n")
    assert "OPTIM.EXTEND was True, now False" in error_of(capsys, argv("--seed", "1", opts=longer))
    assert train.main(words) == 0
    assert (folder / "model.pth.tar-5").read_bytes() == last


def test_a_run_is_not_shortened(argv, tmp_path, base_run, capsys):
    shutil.copytree(base_run, tmp_path / "out")
    opts = ("OPTIM.MAX_EPOCH", "1", "OPTIM.EXTEND", "True")
    assert "MAX_EPOCH was 2, now 1" in error_of(capsys, argv("--seed", "1", opts=opts))


def test_without_a_record_a_folder_is_resumed_as_dassl_does(argv, tmp_path, base_run, capsys):
    shutil.copytree(base_run, tmp_path / "out")
    for name in ("config.yaml", "training_images.json"):
        (tmp_path / "out" / name).unlink()
    without_its_run(tmp_path / "out")  # as Dassl writes it
    assert train.main(argv("--seed", "2")) == 0
    assert "Previous epoch: 2" in capsys.readouterr().out
    assert "SEED: 2\n" in (tmp_path / "out" / "config.yaml").read_text()


def test_a_test_may_write_to_the_folder_of_its_run(argv, tmp_path, base_run):
    folder = shutil.copytree(base_run, tmp_path / "out")
    before = (folder / "config.yaml").read_text()
    flags = ["--eval-only", "--model-dir", str(folder), "--load-epoch", "2"]
    assert train.main(argv(*flags, opts=("DATASET.SUBSAMPLE_CLASSES", "all", "SEED", "9"))) == 0
    assert (folder / "config.yaml").read_text() == before


def test_an_untrained_prompt_does_not_replace_the_results_of_a_training(argv, base_run, capsys):
    before = (base_run / "results.json").read_text()
    words = argv("--eval-only")
    words[words.index("--output-dir") + 1] = str(base_run)
    assert train.main(words) == 2
    assert f"holds a training: add --model-dir {base_run}" in capsys.readouterr().err
    assert (base_run / "results.json").read_text() == before


def test_the_home_folder_behind_a_flag(argv, tmp_path, monkeypatch, capsys):
    """No shell replaces ~ in ``--flag=~/folder``, or in a command without a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = argv(opts=("TRAIN.CHECKPOINT_FREQ", "1"))
    words[2:4] = ["--output-dir=~/out"]
    assert train.main(words) == 0
    words[2] = "--output-dir=~/again"
    assert train.main([*words[:3], "--resume=~/out", *words[3:]]) == 0
    assert "Previous epoch: 2" in capsys.readouterr().out
    assert [*(tmp_path / "again").glob("*/model.pth.tar-2")], "nothing was left to train"
    words[2:3] = ["--output-dir", "~/test", "--eval-only", "--model-dir=~/out", "--load-epoch=2"]
    assert train.main(words) == 0
    (tmp_path / "method.yaml").write_text("OUTPUT_DIR: ~/of_yaml")
    no_train = argv("--no-train")
    no_train[2:4] = []
    no_train[no_train.index(DIGITS)] = "~/method.yaml"
    assert train.main([*no_train, "DATASET.NAME", "Digits"]) == 0
    folders = {"out", "again", "test", "of_yaml"}
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == folders


def test_a_home_folder_in_the_record_of_a_run_is_the_same_setting(argv, tmp_path, base_run):
    folder = shutil.copytree(base_run, tmp_path / "out")
    text = (folder / "config.yaml").read_text()
    text = text.replace("ANCHOR_WEIGHTS: ''", "ANCHOR_WEIGHTS: ~/x")
    (folder / "config.yaml").write_text(text)
    without_its_run(folder)
    words = argv("--seed", "1", opts=("TRAINER.ANCHOROPT.ANCHOR_WEIGHTS", "~/x"))
    assert train.main(words) == 0


def test_a_trainer_with_nothing_to_train_is_tested(argv, tmp_path):
    opts = ("DATASET.SUBSAMPLE_CLASSES", "base")
    assert train.main(argv(trainer="ZeroshotCLIP", opts=opts)) == 0
    assert len(parsed(tmp_path / "out" / "log.txt", "=> result")) == 1


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
    """Return the one line of a command that fails."""
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
        (
            ["--trainer", "CoOp_Pretrain_Anchor", "X.Y"],
            "stage 1 runs inside --trainer CoOp_AnchorO",
        ),
        (["--trainer", "maple_pretrain_anchor"], "stage 1 runs inside --trainer MaPLe_AnchorOPT"),
        (["--trainer", "Pretrain_Anchors"], "CoOp_AnchorOPT.*ENSEMBLE anchors"),
        (["TRAINER.NAME", "DePT_Pretrain_Anchor"], "stage 1 runs inside --trainer DePT_AnchorOPT"),
        (["--root", ""], "--root is not given"),
        (["--root", "/nowhere", "DATASET.NAME", "ImageFolder"], "--root /nowhere is not a folder"),
        (["--resume", "/nowhere"], "--resume /nowhere is not a folder"),
        (["--eval-only", "--model-dir", "/nowhere"], "--model-dir /nowhere is not a folder"),
        (["--config-file", "none.yaml"], r"config file none\.yaml: No such file"),
        (["OPTIM.RL", "1"], r"unknown config key OPTIM\.RL \(did you mean 'OPTIM\.LR'\?\)"),
        (["OPTIM.LR", "fast"], "takes a float, but 'fast' is a str"),
        (["TRAIN.LOGGERS", "csv"], r"takes a list, not one word: write \"\['csv'\]\""),
        (["OPTIM.LR"], "has no value"),
        (["OPTIM.LR", "1", "--seed", "1"], "flags come before KEY VALUE pairs: move --seed"),
        (["OPTIM.LR", "-1", "TEST.SPLIT", "x"], r"OPTIM\.LR is -1\.0, .*; TEST\.SPLIT is 'x'"),
        (["OUTPUT_DIR", "None"], "OUTPUT_DIR takes a str, but None"),
        (["--seed", "4294967296"], "SEED is 4294967296, but must be below"),
        (["DATALOADER.K_TRANSFORMS", "2", "TRAINER.NAME", "CoOp"], "CoOp takes one view"),
        (["OPTIM.MAX_EPOCH", "0"], r"OPTIM\.MAX_EPOCH is 0"),
        (["DATASET.SUBSAMPLE_CLASSES", "old"], r"SUBSAMPLE_CLASSES is 'old', .*all, base, new"),
        (["DATASET.CLASS_SPLIT", "shape"], r"CLASS_SPLIT is 'shape', but Digits has no named spl"),
        (
            ["DATASET.NAME", "Shapes", "DATASET.CLASS_SPLIT", "fil"],
            r"'fil' \(did you mean 'fill'\?\), but Shapes has no such split: choose colour, shape",
        ),
        (["--seed", "one"], "argument --seed: invalid int value: 'one'; --help"),
        (["--trainr", "CoOp"], r"no flag --trainr \(did you mean '--trainer'\?\)"),
        (["--outptu-dir=x\ny"], r"no flag --outptu-dir=x y \(did you mean '--output-dir'\?\)"),
        (["--load-epoch"], "argument --load-epoch: expected one argument"),
    ],
)
def test_an_invalid_command_writes_nothing(argv, tmp_path, capsys, flags, message):
    words = argv()
    first_pair = words.index("DATASET.NUM_SHOTS")
    words = words[:first_pair] + flags
    assert re.search(message, error_of(capsys, words))
    assert list(tmp_path.iterdir()) == []


def test_keys_of_public_scripts_without_effect_are_named(argv, tmp_path):
    method = tmp_path / "method.yaml"
    method.write_text(f"{Path(TINY).read_text()}\n  IVLP:\n    PREC: fp16\n    IMG_WEIGHT: 0.5\n")
    opts = ["TRAINER.PROMPTSRC.GPA_MEAN", "15", "TRAINER.COOP.W", "8.0"]
    words = argv("--no-train", opts=(*opts, "TRAINER.COOP.CTX_INIT", "False"), trainer="CoOp")
    words[words.index(TINY)] = str(method)
    assert train.main(words) == 0
    notes = [x for x in (tmp_path / "out/log.txt").read_text().splitlines() if "Note: " in x]
    keys = ["COOP.W", "IVLP.IMG_WEIGHT", "IVLP.PREC", "PROMPTSRC.GPA_MEAN"]
    assert notes == [
        "Note: keys of other trainers, without effect: "
        + ", ".join(f"TRAINER.{key}" for key in keys)
    ]
    assert "GPA_MEAN: 15" not in (tmp_path / "out/log.txt").read_text()


def test_a_run_of_known_keys_has_no_note(argv, tmp_path):
    assert train.main(argv("--no-train")) == 0
    assert "Note: " not in (tmp_path / "out/log.txt").read_text()


def test_errors_during_a_run(argv, tmp_path, capsys):
    assert "Loss is infinite or NaN!" in error_of(capsys, argv(trainer="Diverges"))
    assert error_of(capsys, argv(trainer="Unwritable")).startswith(
        "error: No space left on device;"
    )
    nesterov = ("OPTIM.SGD_NESTEROV", "True", "OPTIM.MOMENTUM", "0")
    assert "OPTIM of sgd: Nesterov" in error_of(capsys, argv(opts=nesterov))
    (tmp_path / "empty").mkdir()
    flags = ["--eval-only", "--model-dir", str(tmp_path / "empty")]
    assert f"--model-dir {tmp_path}/empty holds no model: give the" in error_of(
        capsys, argv(*flags)
    )
    (tmp_path / "file").touch()
    words = argv()
    words[words.index(str(tmp_path / "out"))] = str(tmp_path / "file" / "out")
    assert f"{tmp_path}/file/out: Not a directory; give another --output-dir" in error_of(
        capsys, words
    )


@pytest.mark.parametrize("name", ["probe", "tensorboard", "config.yaml/x", "probe/checkpoint/x"])
def test_a_file_that_blocks_the_output_folder_is_named(argv, tmp_path, capsys, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.touch()
    named = name.removesuffix("/x")
    assert f"{tmp_path}/out/{named}: " in error_of(capsys, argv())


def test_an_output_folder_may_have_the_name_of_a_log(argv, tmp_path):
    words = argv("--no-train")
    words[words.index(str(tmp_path / "out"))] = str(tmp_path / "run.log")
    assert train.main(words) == 0
    assert (tmp_path / "run.log" / "log.txt").is_file()


def test_ctrl_c(argv, capsys):
    assert train.main(argv(trainer="Interrupted")) == 130
    assert capsys.readouterr().err.startswith("interrupted; ")


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        train.main(["--help"])
    text = capsys.readouterr().out
    assert "CoOp_AnchorOPT" in text
    assert "KEY VALUE" in text


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
        lr = 0.02 if path.stem == "tiny" else 0.002
        assert (lr, 1e-5) == (cfg.OPTIM.LR, cfg.OPTIM.WARMUP_CONS_LR)


@pytest.mark.parametrize("stem", ["digits", "shapes", "image_folder"])
def test_every_config_of_our_data_sets_names_one(stem):
    cfg = cfg_of("--dataset-config-file", str(CONFIGS / "datasets" / f"{stem}.yaml"))
    assert cfg.DATASET.NAME.lower() == stem.replace("_", "")
    assert cfg.DATASET.NAME in train.DATASET_REGISTRY.registered_names()
