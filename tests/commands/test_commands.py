"""``python -m anchoropt_plugin``: run, check and predict, on imitations of public repositories."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import clip
import numpy as np
import pytest
import torch
from clip.simple_tokenizer import SimpleTokenizer
from PIL import Image

import anchoropt_plugin
import train
from anchoropt_plugin import UserError, load_predictor
from anchoropt_plugin.__main__ import main
from anchoropt_plugin.commands import all_commands, predict
from anchoropt_plugin.commands.check import small_trainer
from anchoropt_plugin.commands.check.random_clip import random_clip, random_weights, write_archive
from anchoropt_plugin.commands.check.small_trainer import CLASSES
from anchoropt_plugin.files.images import files_in
from anchoropt_plugin.files.predictions import PREDICTIONS, read_predictions
from anchoropt_plugin.process.code_version import package_version
from anchoropt_plugin.training import stage_two
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY

from ..trainers.runs import without_its_run

ROOT = Path(train.__file__).parent

# A repository that never heard of AnchorOPT: its train.py, a data set, and a trainer as in CoOp.
TRAIN = """
import argparse
import sys

from yacs.config import CfgNode

from dassl.config import clean_cfg, get_cfg_default
from dassl.engine import build_trainer

import data
import trainers.{module}


def extend_cfg(cfg):
    cfg.TRAINER.COOP = CfgNode({{"N_CTX": 4, "PREC": "fp32"}})
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--trainer")
    parser.add_argument("--output-dir")
    parser.add_argument("--fail", default="")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if args.fail == "exit":
        sys.exit(7)
    if args.fail == "raise":
        raise LookupError("of the script's own")
    cfg = get_cfg_default()
    clean_cfg(cfg, "COOP")
    extend_cfg(cfg)
    cfg.merge_from_list(["DATASET.NAME", "Dots", "MODEL.BACKBONE.NAME", "tiny"])
    cfg.merge_from_list(["INPUT.SIZE", (32, 32), "OPTIM.NAME", "sgd", "OPTIM.MAX_EPOCH", 1])
    cfg.merge_from_list(["INPUT.TRANSFORMS", ("normalize",), "USE_CUDA", False])
    cfg.merge_from_list(["DATALOADER.TRAIN_X.BATCH_SIZE", 4, "DATALOADER.NUM_WORKERS", 0])
    cfg.merge_from_list(args.opts)
    cfg.TRAINER.NAME, cfg.OUTPUT_DIR = args.trainer, args.output_dir
    cfg.freeze()
    try:
        build_trainer(cfg).train()
    except Exception:
        if args.fail == "wrap":
            raise Exception("it did not work")
        raise
"""

DATA = """
import os

from PIL import Image

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum


@DATASET_REGISTRY.register()
class Dots(DatasetBase):
    def __init__(self, cfg):
        items = []
        for label, color in enumerate(["red", "green", "blue", "black"]):
            path = os.path.abspath(f"{color}.png")
            Image.new("RGB", (32, 32), color).save(path)
            items.append(Datum(impath=path, label=label, classname=f"{color} dot"))
        super().__init__(train_x=items, test=items)
"""

# As public trainers are written: the CLIP is loaded through a module named clip.
HOST = """
import torch
import torch.nn as nn
from torch.nn import functional as F

from clip import clip
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer


def load_clip_to_cpu(cfg):
    if cfg.MODEL.BACKBONE.NAME == "tiny":
        from anchoropt_plugin.encoders.clip_models import load_clip

        return load_clip("tiny")
    path = clip._download(clip._MODELS[cfg.MODEL.BACKBONE.NAME])
    model = torch.jit.load(path, map_location="cpu").eval()
    model = clip.build_model(model.state_dict())
    return model.float() if cfg.TRAINER.COOP.PREC == "fp32" else model


class TextEncoder(nn.Module):
    def __init__(self, clip_model):
        super().__init__()
        self.transformer = clip_model.transformer
        self.positional_embedding = clip_model.positional_embedding
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.dtype = clip_model.dtype

    def forward(self, prompts, tokens):
        x = (prompts + self.positional_embedding.type(self.dtype)).permute(1, 0, 2)
        x = self.ln_final(self.transformer(x).permute(1, 0, 2)).type(self.dtype)
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection


class Learner(nn.Module):
    def __init__(self, cfg, names, clip_model):
        super().__init__()
        n, width = cfg.TRAINER.COOP.N_CTX, WIDTH or clip_model.ln_final.weight.shape[0]
        self.ctx = nn.Parameter(torch.randn(n, width, dtype=clip_model.dtype) * 0.02)
        tokens = torch.cat([clip.tokenize(" ".join(["X"] * n) + f" {{name}}.") for name in names])
        with torch.no_grad():
            embedding = clip_model.token_embedding(tokens).type(clip_model.dtype)
        self.register_buffer("token_prefix", embedding[:, :1])
        self.register_buffer("token_suffix", embedding[:, 1 + n :])
        self.tokenized_prompts = tokens

    def forward(self):
        ctx = self.ctx.expand(len(self.token_prefix), -1, -1)
        return torch.cat([self.token_prefix, ctx, self.token_suffix], 1)


class Model(nn.Module):
    def __init__(self, cfg, names, clip_model):
        super().__init__()
        self.{learner} = Learner(cfg, names, clip_model)
        self.tokenized_prompts = self.{learner}.tokenized_prompts
        self.image_encoder = clip_model.visual
        self.text_encoder = TextEncoder(clip_model)
        self.logit_scale = clip_model.logit_scale
        self.dtype = clip_model.dtype

    def forward(self, image):
        image = self.image_encoder(image.type(self.dtype))
        text = self.text_encoder(self.{learner}(), self.tokenized_prompts)
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        return self.logit_scale.exp() * image @ text.t()


WIDTH = {width}


@TRAINER_REGISTRY.register()
class {name}(TrainerX):
    def build_model(self):
        cfg = self.cfg
        clip_model = load_clip_to_cpu(cfg)
        self.model = Model(cfg, self.dm.dataset.classnames, clip_model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("{learner}" in name)
        self.optim = build_optimizer(self.model.{learner}, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("{learner}", self.model.{learner}, self.optim, self.sched)

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        output = self.model(image)
        loss = {loss}
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {{"loss": loss.item()}}
"""

# Before its ninth text block it writes a prompt over the context.
DEEP = """
    def blocks(self, x):
        for number, block in enumerate(self.transformer.resblocks):
            if number == 8:
                deep = self.deep.to(x.dtype)[:, None].expand(-1, x.shape[1], -1)
                x = torch.cat([x[:1], deep, x[5:]])
            x = block(x)
        return x

    def forward(self, prompts, tokens):
        x = (prompts + self.positional_embedding.type(self.dtype)).permute(1, 0, 2)
        x = self.ln_final(self.blocks(x).permute(1, 0, 2)).type(self.dtype)
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection
"""

# With a Dassl of the repository's own, a model may be built when the training begins.
LATE = """
from trainers.usual import *


@TRAINER_REGISTRY.register()
class Late(Usual):
    def build_model(self): ...
"""

VISUAL = """
import torch.nn as nn
from clip import clip
from dassl.engine import TRAINER_REGISTRY, TrainerX


@TRAINER_REGISTRY.register()
class Visual(TrainerX):
    def build_model(self):
        path = clip._download(clip._MODELS[self.cfg.MODEL.BACKBONE.NAME])
        self.model = clip.load(path, device="cpu", jit=False)[0]
"""

TUPLE = """
from trainers.usual import *


@TRAINER_REGISTRY.register()
class Tuple(Usual):
    def model_inference(self, image):  # as of a model that takes a test for a training
        return self.model(image), None
"""

CROSS_ENTROPY = "F.cross_entropy(output, label)"


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))


LOADING = """
    def load_model(self, directory, epoch=None):
        for name, model in self._models.items():
            path = f"{directory}/{name}/model.pth.tar-{epoch}"
            state = torch.load(path, weights_only=False)["state_dict"]
            own = model.state_dict()  # what has another size stays
            fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
            model.load_state_dict({**fitting, "token_prefix": own["token_prefix"]}, strict=False)
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with a usual trainer, and others that each differ from it in one point."""
    folder = tmp_path_factory.mktemp("repository")
    usual = {"name": "Usual", "learner": "prompt_learner", "loss": CROSS_ENTROPY, "width": None}
    others = {
        "hard": {"name": "Hard", "width": 512},
        "named": {"name": "Named", "learner": "my_prompts"},
        "odd": {"name": "Odd", "loss": "-output.log_softmax(-1)[range(len(label)), label].mean()"},
        "broken": {"name": "Broken", "loss": "self.cfg.TRAINER.BROKEN.WEIGHT * output.mean()"},
    }
    write(folder, "train.py", TRAIN.format(module="usual"))
    write(folder, "data.py", DATA)
    write(folder, "trainers/__init__.py", "")
    write(folder, "trainers/usual.py", HOST.format(**usual))
    for module, differing in others.items():
        write(folder, f"trainers/{module}.py", HOST.format(**{**usual, **differing}))
    named = (folder / "trainers/named.py").read_text()
    write(folder, "trainers/named.py", named + textwrap.indent(textwrap.dedent(LOADING), "    "))
    deep = HOST.format(**{**usual, "name": "Deep"})
    start, stop = deep.index("    def forward(self, prompts"), deep.index("class Learner")
    deep = deep[:start] + DEEP + deep[stop:]
    own = "self.transformer = clip_model.transformer"
    deep = deep.replace(own, f"{own}; self.deep = nn.Parameter(torch.ones(4, 512))")
    write(folder, "trainers/deep.py", deep)
    write(folder, "trainers/visual.py", VISUAL)
    write(folder, "trainers/tuple.py", TUPLE)
    write(folder, "trainers/late.py", LATE)
    write(folder, "trainers/unimportable.py", "import a_module_that_is_nowhere\n")
    return folder


def process(folder, *words, **environment):
    """Run ``python -m anchoropt_plugin`` in a folder, in a process of its own."""
    path = Path(anchoropt_plugin.__file__).parents[1]
    # The package alone is installed there, not this repository's trainers and data sets.
    installed = folder / ".installed"
    if not installed.exists():
        installed.mkdir()
        (installed / "anchoropt_plugin").symlink_to(path / "anchoropt_plugin")
    home = folder / ".home"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "anchoropt_plugin", *map(str, words)],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(installed),
            "HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "ANCHOROPT_CACHE": str(home / "anchors"),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run a command within this process, which is faster; restore modules and registries."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for registry in (TRAINER_REGISTRY, DATASET_REGISTRY):
        monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)

    def forget():
        for name in [name for name in sys.modules if name.partition(".")[0] in OWN_MODULES]:
            del sys.modules[name]

    def run(folder, *words):
        forget()
        TRAINER_REGISTRY._obj_map.clear()
        DATASET_REGISTRY._obj_map.clear()
        monkeypatch.chdir(folder)
        status = main(list(map(str, words)))
        return Result(status, *capsys.readouterr())

    yield run
    forget()
    sys.modules.update({name: before[name] for name in before if name not in sys.modules})


OWN_MODULES = ("train", "trainers", "data", "mine")


def one_line(result):
    """Return the line that a failed command prints."""
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    return result.stderr.removeprefix("error: ").strip()


# ---------------------------------------------------------------------- the command line
def test_every_module_of_the_folder_is_a_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, module in all_commands().items():
        assert name in shown and " ".join(module.HELP.split()) in shown
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert f"    python -m anchoropt_plugin {name} " in capsys.readouterr().out, "an example"


def test_the_script_is_named_as_it_was_typed(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/anchoropt"])
    for words, shown in (
        (["--help"], "usage: anchoropt ["),
        (["report", "--help"], "usage: anchoropt report "),
        (["report", "--help"], "    anchoropt report output/base\n"),
        (
            ["--version"],
            f"anchoropt-plugin {package_version()}\ntorch {torch.__version__}\nDassl not inst",
        ),
    ):
        with pytest.raises(SystemExit) as end:
            main(words)
        said = capsys.readouterr().out
        assert end.value.code == 0 and shown in said and "python -m" not in said
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert ": anchoropt report --help names its columns" in said
    assert "give the output folder of a run" in said and "eval-only" not in said
    run = tmp_path / "base/seed1"
    run.mkdir(parents=True)
    (run / "predictions.csv").touch()
    assert main(["report", str(tmp_path)]) == 2
    assert f"holds 1 runs: give the folder of one: {run}\n" in capsys.readouterr().err
    for seed in range(2, 8):
        (tmp_path / f"base/seed{seed}").mkdir()
        (tmp_path / f"base/seed{seed}/predictions.csv").touch()
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "holds 7 runs" in said and said.endswith(f"{tmp_path / 'base/seed5'}, …\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: COMMAND"),
        (["predcit"], "'predcit'"),
        (["predict", "--model-dri", "x", "a.jpg"], "--model-dir"),
        (
            ["predict", "--model-dir", "x", "--classes", "a", "b.jpg"],
            "images, before --classes, which",
        ),
        (["report", "no_folder"], "there is no folder no_folder"),
        (["run", "no/train.py"], "there is no script no/train.py"),
        (["check", "trainers.coop"], "not of the form module:Trainer"),
        (["check", "no_such_module:CoOp"], "there is no module 'no_such_module'"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# ---------------------------------------------------------------------- run
@pytest.fixture(scope="module")
def trained(repository):
    """A run of the repository's own train.py with AnchorOPT, and its output folder."""
    keys = ["TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "2", "TRAINER.ANCHOROPT.POSITION", "gumbel"]
    words = ["train.py", "--trainer", "Usual_AnchorOPT", "--output-dir", "out", *keys]
    result = process(repository, "run", *words)
    assert result.returncode == 0, result.stderr
    return result, repository / "out"


def test_an_unchanged_train_py_runs_both_stages(trained):
    result, out = trained
    assert "stage 1 epoch [2/2]" in result.stdout and "Stage 2:" in result.stdout
    assert "* accuracy:" in result.stdout
    settings = json.loads((out / "anchoropt.json").read_text())["settings"]
    assert settings["position"] == "gumbel", "keys of a train.py that never heard of them"


@pytest.mark.parametrize("trainer", ["Usual_AnchorOPT", "Usual"])
def test_a_run_of_any_train_py_resumes_with_its_own_settings_alone(
    trained, command, repository, tmp_path, trainer
):
    out = shutil.copytree(trained[1], tmp_path / "out")
    words = ["run", "train.py", "--trainer", trainer, "--output-dir", out]
    if trainer == "Usual":
        shutil.rmtree(out)
        assert command(repository, *words).returncode == 0
    before = {path: path.read_bytes() for path in out.rglob("model*")}
    line = one_line(command(repository, *words, "OPTIM.LR", "0.5"))
    assert f"{out} holds a run with other settings: OPTIM.LR was " in line
    assert before and before == {path: path.read_bytes() for path in out.rglob("model*")}


def test_a_script_in_another_folder_finds_its_own_modules(repository, trained, tmp_path):
    # A clip of its own, too: the plug-in has loaded another one by then.
    copy = tmp_path / "repository"
    copy.mkdir()
    for path in repository.iterdir():
        if path.is_file() or path.name == "trainers":
            subprocess.run(["cp", "-r", path, copy], check=True)
    write(copy, "clip/__init__.py", "print('its own clip')\nfrom . import clip\n")
    write(copy, "clip/clip.py", "def tokenize(text):\n    raise LookupError('its tokenizer')\n")
    words = [copy / "train.py", "--trainer", "Usual_AnchorOPT", "--output-dir", "out"]
    result = process(tmp_path, "run", *words)
    assert "its own clip" in result.stdout and "LookupError: its tokenizer" in result.stderr


def test_unknown_trainers_name_what_there_is(command, repository):
    line = one_line(command(repository, "run", "train.py", "--trainer", "Usaul_AnchorOPT"))
    assert "there is no trainer 'Usaul'" in line
    assert "did you mean 'Usual'?" in line and "registered: Usual" in line


@pytest.mark.parametrize("fail", ["", "wrap"])
def test_errors_of_the_plug_in_are_one_line_even_if_wrapped(command, repository, fail):
    words = ["--trainer", "Usual_AnchorOPT", "--fail", fail, "TRAINER.ANCHOROPT.KD_WEIGHT", "-1.0"]
    line = one_line(command(repository, "run", "train.py", *words))
    assert line == "TRAINER.ANCHOROPT: KD_WEIGHT must not be negative"


def test_exceptions_and_exit_statuses_of_the_script_stay(repository):
    assert process(repository, "run", "train.py", "--fail", "exit").returncode == 7
    result = process(repository, "run", "train.py", "--fail", "raise")
    assert result.returncode == 1
    assert result.stderr.endswith("LookupError: of the script's own\n")
    assert "runpy" not in result.stderr and "anchoropt_plugin" not in result.stderr


def test_trainers_are_made_on_demand_while_the_block_runs():
    from anchoropt_plugin.training.trainer_registry import two_stages_on_demand
    from dassl.engine import TrainerX

    class Undecorated(TrainerX):
        pass

    TRAINER_REGISTRY._obj_map["Undecorated"] = Undecorated
    try:
        with two_stages_on_demand():
            assert "Undecorated_AnchorOPT" in TRAINER_REGISTRY.registered_names()
            assert "Undecorated_AnchorOPT" not in TRAINER_REGISTRY._obj_map
            made = TRAINER_REGISTRY.get("Undecorated_AnchorOPT")
            assert issubclass(made, Undecorated) and made.anchoropt_host is Undecorated
            assert TRAINER_REGISTRY.get("Undecorated_AnchorOPT") is made
            assert "Undecorated_AnchorOPT_AnchorOPT" not in [*TRAINER_REGISTRY.registered_names()]
            with pytest.raises(KeyError):
                TRAINER_REGISTRY.get("NoSuchTrainer")
        assert vars(TRAINER_REGISTRY).keys() == {"_name", "_obj_map"}
    finally:
        del TRAINER_REGISTRY._obj_map["Undecorated"], TRAINER_REGISTRY._obj_map[made.__name__]


# ---------------------------------------------------------------------- check
@pytest.mark.parametrize(
    ("trainer", "learner"),
    [("usual:Usual", "prompt_learner"), ("hard:Hard", "prompt_learner")],
)
def test_the_report_of_check(command, repository, trainer, learner):
    result = command(repository, "check", f"trainers.{trainer}")
    assert result.returncode == 0, result.stderr
    text = " ".join(result.stdout.split())
    lines = (repository / "trainers/usual.py").read_text().splitlines()
    line = lines.index(f"        loss = {CROSS_ENTROPY}")
    module, _, name = trainer.partition(":")
    tokenizer = SimpleTokenizer()
    # [SOS], four soft tokens and an anchor once, then each name with its full stop and [EOT].
    computed = 6 + sum(len(tokenizer.encode(f"{name}.")) + 1 for name in CLASSES)
    for found in (
        f"{name} works with AnchorOPT, except for tests on other classes: ",
        f"model.{learner} (Learner): 4 soft tokens of width 512, read by PromptHook",
        "deep prompts none",
        f"F.cross_entropy at trainers/{module}.py:{line + 1}, over logits (4, 8)",
        "2,073 numbers in 2 tensors",
        "objective as computed apart in float64: image features to",
        f"{learner}.ctx (4, 512)",
        f"{learner}.anchoropt.logits (5, 5)",
        # The look-alike leaves loading to Dassl, which knows of no other classes.
        "checkpoints load for the same classes: yes; for others: no, as without AnchorOPT",
        "replaces TextEncoder, relative error",
        f"616 → {computed} tokens",
    ):
        assert found in text, text
    assert not list(Path.home().rglob("*clip*")), "the user's cache was touched"


@pytest.mark.parametrize(
    ("owner", "name", "fault", "part"),
    [
        (stage_two, "distillation", lambda one: lambda *a: 2 * one(*a), "[0-9.e-]+, loss [0-9]"),
        (stage_two.PlainImages, "__call__", lambda one: lambda *a: 2 * a[-1] + 1, ""),
    ],
)
def test_check_compares_the_objective_with_its_definition(
    command, repository, monkeypatch, owner, name, fault, part
):
    monkeypatch.setattr(owner, name, fault(getattr(owner, name)))
    result = command(repository, "check", "trainers.usual:Usual")
    assert result.returncode == 2
    wanted = "error: AnchorOPT's objective differs from its definition (plain image features "
    assert re.search(re.escape(wanted) + part, result.stderr), result.stderr


def test_check_finds_learners_of_another_name(command, repository):
    result = command(repository, "check", "trainers.named:Named")
    assert "model.my_prompts (Learner)" in result.stdout, result.stderr
    text = " ".join(result.stdout.split())
    assert "Named works with AnchorOPT, except for tests on other classes: its load_model" in text
    assert "must skip token_suffix learner" in text, text
    assert "for others: no, as without AnchorOPT; of the plain host: yes" in text, text


def test_check_has_all_text_blocks_that_hosts_expect(command, repository):
    result = command(repository, "check", "trainers.deep:Deep")
    wanted = "before text blocks 8 of 12, from its own parameters, such as deep"
    assert wanted in " ".join(result.stdout.split()), result.stderr


def test_check_takes_keys_and_trainers_without_a_train_py(command, repository, tmp_path):
    precision = ["TRAINER.MY.PREC", "fp32"]
    write(tmp_path, "mine.py", (repository / "trainers/usual.py").read_text().replace("COOP", "MY"))
    result = command(tmp_path, "check", "mine:Usual", "TRAINER.MY.N_CTX", 3, *precision)
    assert "3 soft tokens of width 512" in result.stdout, result.stderr
    line = one_line(command(tmp_path, "check", "mine:Usual"))
    assert "without AnchorOPT fails on the random CLIP" in line and "MY" in line
    assert "KEY VALUE" in line and "--classes" in line


def test_flags_after_the_trainer_are_refused(command, repository):
    line = one_line(command(repository, "check", "trainers.usual:Usual", "--config-file", "x.yaml"))
    says = "--config-file comes after trainers.usual:Usual: give flags before MODULE:TRAINER"
    assert line == says


def test_a_train_py_whose_keys_cannot_be_read_is_one_line(command, repository, tmp_path):
    usual = (repository / "trainers/usual.py").read_text()
    write(tmp_path, "mine.py", usual)
    write(tmp_path, "train.py", "def extend_cfg(cfg):\n    cfg.SHOTS = shots\n")
    line = one_line(command(tmp_path, "check", "mine:Usual"))
    assert line.startswith("extend_cfg of train.py fails: ") and "train.py:2: NameError" in line
    write(tmp_path, "train.py", "import a_module_that_is_nowhere\ndef extend_cfg(cfg): pass\n")
    line = one_line(command(tmp_path, "check", "mine:Usual"))
    assert line.startswith("importing train fails: ") and line.count("fails") == 1


@pytest.mark.parametrize("arguments", ["cfg", "cfg, args", "cfg, args, *, more=()"])
def test_keys_that_a_train_py_sets_by_its_flags(monkeypatch, tmp_path, arguments):
    text = f"def extend_cfg({arguments}):\n    cfg.SHOTS = args.shots\n"
    write(tmp_path, "train.py", text)
    script = ModuleType("train")
    exec(text, vars(script))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(small_trainer, "import_user_module", lambda name: script)
    given = small_trainer.own_keys(), tmp_path, None
    assert small_trainer.trial_cfg(object, *given, []).SHOTS is None
    assert small_trainer.trial_cfg(object, *given, ["SHOTS", "4"]).SHOTS == 4


def test_keys_of_a_repository_with_defaults_of_its_own(monkeypatch, tmp_path):
    text = """
    from yacs.config import CfgNode

    def get_cfg_default():
        return CfgNode({"OPTIM": {"LR": 0.1, "NEW_LR": 0.2}})

    def extend_cfg(cfg):
        cfg.SHOTS = cfg.OPTIM.NEW_LR
    """
    script = ModuleType("train")
    exec(textwrap.dedent(text), vars(script))
    write(tmp_path, "train.py", textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(small_trainer, "import_user_module", lambda name: script)
    cfg = small_trainer.trial_cfg(object, small_trainer.own_keys(), tmp_path, None, [])
    assert (cfg.OPTIM.NEW_LR, cfg.SHOTS) == (0.2, 0.2)
    assert cfg.OPTIM.LR == 0.002  # that of a trial


def test_loading_is_not_required_of_a_host_that_cannot_load(command, repository, tmp_path):
    loading = """
        def load_model(self, directory, epoch=None):
            raise LookupError("only with a key of mine")

        def after_epoch(self):
            assert self.time_start  # before_train has set it
    """
    text = (repository / "trainers/usual.py").read_text() + textwrap.indent(
        textwrap.dedent(loading), "    "
    )
    write(tmp_path, "mine.py", text)
    result = command(tmp_path, "check", "mine:Usual", "TRAINER.COOP.PREC", "fp32")
    found = " ".join(result.stdout.split())
    assert "not tried: Usual alone does not load its own" in found, result.stderr
    assert "LookupError: only with a key of mine" in found


def test_a_clip_that_imports_dassl_is_found_first(tmp_path):
    """Some forks of CLIP import a module of a trainer."""
    installed = str(Path(clip.__file__).parent)
    text = f"import dassl.engine\n__path__.append({installed!r})\nfrom clip.clip import *\n"
    write(tmp_path, "clip/__init__.py", text)
    result = process(tmp_path, "--help")
    assert result.returncode == 0, result.stderr


def test_clean_cfg_keeps_the_keys_of_the_host(repository, tmp_path):
    script = """
        from dassl.config import clean_cfg, get_cfg_default
        from yacs.config import CfgNode

        cfg = get_cfg_default()
        cfg.TRAINER.MINE, cfg.TRAINER.OTHER = CfgNode(), CfgNode()
        clean_cfg(cfg, "Mine_AnchorOPT")
        assert {"MINE", "ANCHOROPT"} <= set(cfg.TRAINER) and "OTHER" not in cfg.TRAINER
    """
    write(tmp_path, "train.py", script)
    assert main(["run", str(tmp_path / "train.py")]) == 0


def test_an_interrupted_script_says_how_it_goes_on(tmp_path, capsys):
    (tmp_path / "train.py").write_text("raise KeyboardInterrupt")
    assert main(["run", str(tmp_path / "train.py")]) == 130
    assert "the same command resumes from its last checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trainer", "wanted"),
    [
        ("visual:Visual", ["Visual has no prompt learner", "token_prefix", "like CoOp's"]),
        ("late:Late", ["Late has no model after __init__", "build_model"]),
        ("odd:Odd", ["Odd computes no F.cross_entropy", "its 8 classes", "(output, label)"]),
        ("broken:Broken", ["Broken without AnchorOPT fails", "trainers/broken.py:", "stand-ins"]),
        ("tuple:Tuple", ["model_inference of Tuple returns a tuple, not logits"]),
        ("unimportable:X", ["importing trainers.unimportable fails", "a_module_that_is_nowhere"]),
        ("usual:Usaul", ["no trainer 'Usaul' (did you mean 'Usual'?)", "it registers Usual"]),
    ],
)
def test_check_names_the_missing_part_in_one_line(command, repository, trainer, wanted):
    line = one_line(command(repository, "check", f"trainers.{trainer}"))
    assert all(words in line for words in wanted), line


# What public hosts expect of images, data set, class names, backbone, blocks, flags and epochs.
EXPECTING = """
import json

import torchvision.transforms as T

from dassl.data import DataManager
from trainers.usual import *

with open("descriptions.json") as file:
    DESCRIPTIONS = json.load(file)


@TRAINER_REGISTRY.register()
class Expecting(Usual):
    def build_data_loader(self):
        views = [T.Compose([T.Resize((224, 224)), T.ToTensor()])] * 2
        dm = DataManager(self.cfg, custom_tfm_train=views)
        self.dm, self.num_classes, self.lab2cname = dm, dm.num_classes, dm.lab2cname
        self.train_loader_x, self.test_loader = dm.train_loader_x, dm.test_loader
        self.train_loader_u, self.val_loader = None, dm.val_loader

    def build_model(self):
        assert [DESCRIPTIONS[name] for name in self.dm.dataset.all_class_names]
        assert len(self.dm.dataset.train_x) >= 4 and self.train_loader_x.batch_size == 4
        super().build_model()
        visual = self.model.image_encoder
        self.model.cuda(), self.model.logit_scale.to("cuda:0")
        assert visual.conv1.kernel_size == (16, 16) and len(visual.transformer.resblocks) == 12

    def forward_backward(self, batch):
        assert batch["img"].shape == batch["img2"].shape == (4, 3, 224, 224)
        return super().forward_backward(batch)

    def after_epoch(self):
        super().after_epoch()
        self.cfg.lambda_value + self.cfg.TRAINER.FLAGS.FACTOR
"""


def test_stand_ins_have_what_hosts_expect(command, repository, tmp_path):
    for name in ("train.py", "data.py", "trainers/__init__.py", "trainers/usual.py"):
        write(tmp_path, name, (repository / name).read_text())
    names = ["tall tree", "low bush", "grass"]
    write(tmp_path, "descriptions.json", json.dumps(dict.fromkeys(names, "green")))
    write(tmp_path, "trainers/expecting.py", EXPECTING)
    words = ["check", "--classes", *names, "--", "trainers.expecting:Expecting"]
    backbone = ["MODEL.BACKBONE.NAME", "ViT-B/16"]
    line = one_line(command(tmp_path, *words, *backbone))
    assert "trainers/expecting.py" in line and "lambda_value" in line, "after_epoch runs"
    assert line.startswith("Expecting without AnchorOPT fails on the random CLIP and images")
    flags = ["lambda_value", 0.25, "TRAINER.FLAGS.FACTOR", 1.0]
    result = command(tmp_path, *words, *backbone, *flags)
    assert "Expecting works with AnchorOPT" in result.stdout, result.stderr
    assert "over logits (4, 3)" in result.stdout
    line = one_line(command(tmp_path, *words, "TRAINER.ANCHOROPT.KD_WIGHT", 1.0))
    assert "KD_WIGHT" in line and "KD_WEIGHT" in line


@pytest.mark.parametrize("backbone", ["ViT-B-32", "RN50"])
def test_the_random_clip_has_the_format_of_openai(tmp_path, backbone):
    from anchoropt_plugin.encoders.clip_models import load_clip

    path, weights = tmp_path / "random.pt", random_weights(backbone)
    write_archive(weights, path)
    clip = load_clip(str(path))
    assert clip.visual.input_resolution == 224
    state = clip.state_dict()
    assert state.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(state[name], value.half().to(value.dtype))
    with torch.no_grad():
        features = clip.visual(torch.randn(1, 3, 224, 224))
    assert features.shape == (1, clip.text_projection.shape[1]) and features.isfinite().all()


def test_clip_modules_load_the_random_clip_and_download_nothing():
    import urllib.request

    import clip

    own = clip.clip._download
    with random_clip():
        assert clip.clip._download("https://nowhere/ViT-B-16.pt").endswith("ViT-B-16.pt")
        with pytest.raises(UserError, match=r"MODEL\.BACKBONE\.NAME"):
            clip.clip._download("https://nowhere/RN50x64.pt")
        with pytest.raises(UserError, match="https://nowhere"):
            urllib.request.urlopen("https://nowhere")
    assert clip.clip._download is own


# ---------------------------------------------------------------------- predict
DIGITS = ["--dataset-config-file", str(ROOT / "configs/datasets/digits.yaml")]
TINY = ["--config-file", str(ROOT / "configs/trainers/CoOp/tiny.yaml")]


def train_words(root, out, trainer, *flags, classes="base", shots="4"):
    return [
        *("--root", str(root), "--output-dir", str(out), "--trainer", trainer, "--seed", "1"),
        *(*DIGITS, *TINY, *flags, "OPTIM.MAX_EPOCH", "2", "TRAINER.COOP.N_CTX", "4"),
        *("DATASET.SUBSAMPLE_CLASSES", classes, "DATASET.NUM_SHOTS", shots, "USE_CUDA", "False"),
        *("TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "5"),
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Output folders of short runs on the base classes of Digits, by trainer."""
    folder = tmp_path_factory.mktemp("runs")
    for trainer in ("CoOp", "CoOp_AnchorOPT"):
        assert train.main(train_words(folder / "data", folder / trainer, trainer)) == 0
    return folder


def evaluated(runs, trainer, classes):
    """Return the paths of the test images, their logits by the trainer, and the class names."""
    flags = ["--eval-only", "--model-dir", str(runs / trainer), "--load-epoch", "2"]
    words = train_words(runs / "data", runs / "eval", trainer, *flags, classes=classes)
    built = train.build_trainer(train.setup_cfg(train.build_parser().parse_args(words)))
    built.load_model(str(runs / trainer), epoch=2)
    built.set_model_mode("eval")
    batches = list(built.test_loader)
    with torch.no_grad():
        logits = [built.model_inference(built.parse_batch_test(batch)[0]) for batch in batches]
    paths = [path for batch in batches for path in batch["impath"]]
    return paths, torch.cat(logits), built.dm.dataset.classnames


@pytest.mark.parametrize("trainer", ["CoOp", "CoOp_AnchorOPT"])
@pytest.mark.parametrize("classes", ["base", "new"])
def test_probabilities_are_those_of_an_evaluation(runs, trainer, classes, capfd):
    paths, logits, names = evaluated(runs, trainer, classes)
    capfd.readouterr()
    predictor = load_predictor(runs / trainer, None if classes == "base" else names)
    assert capfd.readouterr() == ("", "")
    assert predictor.classes == tuple(names)
    found = predictor.probabilities(paths)
    torch.testing.assert_close(found, logits.softmax(-1), rtol=1e-5, atol=1e-7)
    with Image.open(paths[0]) as image:
        answer = predictor(image)
    assert list(answer.values()) == sorted(answer.values(), reverse=True)
    assert answer == pytest.approx(dict(zip(names, found[0].tolist(), strict=True)), rel=1e-4)


def test_unseen_classes_are_averaged_with_the_anchors_logits(runs):
    names = evaluated(runs, "CoOp_AnchorOPT", "new")[2]
    predictor = load_predictor(runs / "CoOp_AnchorOPT", names)
    assert predictor._trainer.anchoropt_rule.averages
    assert not load_predictor(runs / "CoOp_AnchorOPT")._trainer.anchoropt_rule.averages


def test_the_arguments_of_the_decorator_are_those_of_the_run(trained, command, repository):
    # Its record says "gumbel", given on the command line of a train.py that writes no config.yaml.
    words = ["predict", "--model-dir", "out", "red.png", "--import", "trainers.usual", "--json"]
    result = command(repository, *words)
    assert result.returncode == 0, result.stderr
    (entry,) = json.loads(result.stdout)
    assert entry["image"] == "red.png" and len(entry["probabilities"]) == 4
    assert sum(entry["probabilities"].values()) == pytest.approx(1)
    line = one_line(command(repository, *words[:4]))
    assert "trainer 'Usual_AnchorOPT' is not registered" in line


def test_a_folder_is_read_as_for_a_training(tmp_path, capsys):
    for name in ("a.jfif", "deep/b.webp", "c.JPEG", "d.jp2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    for name in ("e.heic", "no_suffix", "deep/notes.txt"):
        (tmp_path / name).touch()

    class Fake:
        batch_size = 3

        def probabilities(self, images):
            return torch.zeros(len(images), 2)

    found = [path for path, _ in predict._predicted(Fake(), [str(tmp_path)])]
    assert found == [tmp_path / name for name in files_in(tmp_path)[0]]
    assert len(found) == 4
    said = capsys.readouterr().err
    assert "skipped 3 file(s)" in said
    assert all(f"skipped: {tmp_path / name} " in said for name in ("e.heic", "deep/notes.txt"))


def test_images_are_turned_as_the_camera_was_held(runs, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    turned, plain = tmp_path / "turned.png", tmp_path / "plain.png"
    Image.fromarray(np.rot90(pixels)).save(turned, exif=exif)
    Image.fromarray(pixels).save(plain)
    predictor = load_predictor(runs / "CoOp")
    with Image.open(turned) as image:
        found = predictor.probabilities([plain, turned, image])
    assert found[0].tolist() == found[1].tolist() == found[2].tolist()
    words = ["predict", "--model-dir", str(runs / "CoOp"), "--json", str(plain), str(turned)]
    capsys.readouterr()
    assert main(words) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["probabilities"] == second["probabilities"]


def test_images_and_folders(runs, tmp_path, capsys):
    paths = evaluated(runs, "CoOp", "base")[0]
    inside = tmp_path / "images" / "more"
    inside.mkdir(parents=True)
    for number, path in enumerate(paths[:3]):
        (inside / f"{number}.png").write_bytes(Path(path).read_bytes())
    with Image.open(paths[0]) as image:  # twice, as an animation
        image.save(inside / "0.png", save_all=True, append_images=[image.point(lambda x: 255 - x)])
    (inside / "cut.png").write_bytes(Path(paths[0]).read_bytes()[:60])
    (inside / "note.txt").write_text("no image")
    (inside / ".hidden").write_text("")
    capsys.readouterr()
    words = ["predict", "--model-dir", str(runs / "CoOp"), "--top", "2"]
    assert main([*words, str(tmp_path / "images"), "--classes", "cat", "red dog", "bus"]) == 0
    out, errors = capsys.readouterr()
    lines = out.splitlines()
    assert lines[::3] == [str(inside / f"{number}.png") for number in range(3)]
    for line in lines[1::3] + lines[2::3]:
        assert re.fullmatch(r" +\d+\.\d %  (cat|red dog|bus)", line)
    assert f"skipped: cannot read the image {inside}/cut.png" in errors
    assert "1 image(s) have several frames or pages: the first was classified" in errors
    assert "skipped 2 file(s)" in errors and "note.txt" in errors and ".hidden" not in errors

    names = tmp_path / "names.txt"
    names.write_text("cat\n\nred dog\n")
    assert main([*words, str(inside / "0.png"), "--classes-file", str(names)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("trainer", ["CoOp", "CoOp_AnchorOPT"])
def test_the_images_of_a_test_get_the_probabilities_of_the_test(runs, trainer, capsys):
    file = runs / trainer / PREDICTIONS
    written = read_predictions(file)
    words = ["predict", "--model-dir", str(runs / trainer), str(file), "--json"]
    capsys.readouterr()
    assert main(words) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["image"] for entry in entries] == written.images
    for entry, top, probability in zip(entries, written.top, written.probability, strict=True):
        assert list(entry["probabilities"]) == top
        assert entry["probabilities"][top[0]] == pytest.approx(probability, rel=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cut.png"], "cannot read the image cut.png"),
        (
            ["cut.png", "white.png", "cut.png"],
            "2 of 3 images cannot be read; mend or remove them: cannot read the image cut.png",
        ),
        (["broken", "white.png"], "there is no image in the folder broken"),
        (["list.csv"], "the image none.png is missing; put it back, or correct the path"),
        (["cut.csv"], "cut.csv has no column 'image'"),
        (["none.png"], "there is no image or folder none.png"),
        ([], "error: no image is given: name images or folders of images"),
        (["empty"], "there is no image in the folder empty"),
        (["cut.png", "--top", "0"], "--top is 0"),
        (["cut.png", "--load-epoch", "7"], "model.pth.tar-2"),
        (["cut.png", "--model-dir", "empty"], "empty has no config.yaml"),
        (["cut.png", "--model-dir", "cut.csv"], "cut.csv is neither the output folder of a run"),
        (["cut.png", "--classes", "cat", "cat"], "'cat' and 'cat' are one to CLIP"),
        (["cut.png", "--classes", "Red_Fox", "red  fox"], "'Red_Fox' and 'red  fox' are one"),
        (["cut.png", "--import", "no_such"], "there is no module 'no_such'"),
    ],
)
def test_errors_of_predict_are_one_line(runs, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    Path("cut.png").write_bytes(b"no image")
    Path("cut.csv").write_text("path\na.png\n")
    Path("list.csv").write_text("image\nnone.png\n")
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/a.png").write_bytes(b"no image")
    Image.new("RGB", (32, 32)).save("white.png")
    assert main(["predict", "--import", "trainers", "--model-dir", str(runs / "CoOp"), *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error


def test_predict_tells_that_the_backbone_never_saw_a_class_name(runs, tmp_path, caplog):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    given = ["--import", "trainers", "--model-dir", str(runs / "CoOp"), str(tmp_path / "a.png")]
    assert main(["predict", *given, "--classes", "star", "badger"]) == 0
    assert caplog.text.count("never saw 1 word(s) of the class names (badger)") == 1
    caplog.clear()
    assert main(["predict", *given]) == 0
    assert "never saw" not in caplog.text


def test_predict_prints_an_entry_for_each_line_of_a_csv(runs, tmp_path, capsys):
    for number in range(2):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
    lines = [str(tmp_path / f"{number}.png") for number in (0, 1, 0, 0)]
    file = tmp_path / "list.csv"
    file.write_text("\n".join(["image", *lines]))
    given = ["--import", "trainers", "--model-dir", str(runs / "CoOp"), "--json"]
    assert main(["predict", *given, str(file)]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["image"] for entry in entries] == lines


def test_the_report_of_a_training_shows_its_course_and_its_order(runs):
    for trainer, n_figures in (("CoOp", 2), ("CoOp_AnchorOPT", 3)):
        assert main(["report", str(runs / trainer)]) == 0
        page = (runs / trainer / "report.html").read_text(encoding="utf-8")
        assert page.count("data:image/svg") == n_figures
        results = json.loads((runs / trainer / "results.json").read_text())
        assert f"{results['accuracy']:.1f}&nbsp;%</b>top-1 accuracy" in page
        shots = "4 training images per class"
        assert f"{trainer}, tiny, Digits, classes: base, {shots}, seed 1" in page
        assert ("Order of the tokens" in page) == ("order" in results)
        assert ("ENSEMBLE auto" in page) == ("order" in results)


def test_a_folder_without_class_names_asks_for_them(runs, tmp_path):
    (tmp_path / "config.yaml").write_bytes((runs / "CoOp" / "config.yaml").read_bytes())
    with pytest.raises(UserError, match=r"has no classes\.json: give the class names"):
        load_predictor(tmp_path)


def test_a_checkpoint_without_anchors_is_refused(runs, tmp_path):
    folder = shutil.copytree(runs / "CoOp", tmp_path / "run")
    text = (folder / "config.yaml").read_text().replace("NAME: CoOp\n", "NAME: CoOp_AnchorOPT\n")
    (folder / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"TRAINER\.NAME was 'CoOp', now 'CoOp_AnchorOPT'"):
        load_predictor(folder)
    without_its_run(folder)
    with pytest.raises(UserError, match="has no anchors"):
        load_predictor(folder)
