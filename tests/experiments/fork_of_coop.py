"""A small fork of CoOp, as users have one: a train.py in CoOp's form, with a trainer of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anchoropt_plugin

TRAIN = """
import argparse
import torch

from dassl.utils import setup_logger, set_random_seed, collect_env_info
from dassl.config import get_cfg_default
from dassl.engine import build_trainer

import data
import trainers.mycoop


def reset_cfg(cfg, args):
    if args.root:
        cfg.DATASET.ROOT = args.root
    if args.output_dir:
        cfg.OUTPUT_DIR = args.output_dir
    if args.seed:
        cfg.SEED = args.seed
    if args.trainer:
        cfg.TRAINER.NAME = args.trainer


def extend_cfg(cfg):
    from yacs.config import CfgNode as CN

    cfg.TRAINER.MYCOOP = CN()
    cfg.TRAINER.MYCOOP.N_CTX = 4
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"


def setup_cfg(args):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    if args.dataset_config_file:
        cfg.merge_from_file(args.dataset_config_file)
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    reset_cfg(cfg, args)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    return cfg


def main(args):
    cfg = setup_cfg(args)
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    setup_logger(cfg.OUTPUT_DIR)
    print(collect_env_info())
    trainer = build_trainer(cfg)
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        trainer.test()
        return
    if not args.no_train:
        trainer.train()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=str, default="")
    parser.add_argument("--output-dir", type=str, default="")
    parser.add_argument("--seed", type=int, default=-1)
    parser.add_argument("--config-file", type=str, default="")
    parser.add_argument("--dataset-config-file", type=str, default="")
    parser.add_argument("--trainer", type=str, default="")
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument("--model-dir", type=str, default="")
    parser.add_argument("--load-epoch", type=int)
    parser.add_argument("--no-train", action="store_true")
    parser.add_argument("opts", default=None, nargs=argparse.REMAINDER)
    main(parser.parse_args())
"""

DATA = """
import os

from PIL import Image

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

COLOURS = ["red", "green", "blue", "black"]


@DATASET_REGISTRY.register()
class Dots(DatasetBase):
    def __init__(self, cfg):
        root = os.path.abspath(cfg.DATASET.ROOT)
        half = {"all": COLOURS, "base": COLOURS[:2], "new": COLOURS[2:]}
        items = []
        for label, colour in enumerate(half[cfg.DATASET.SUBSAMPLE_CLASSES]):
            path = os.path.join(root, f"{colour}.png")
            items.append(Datum(impath=path, label=label, classname=f"{colour} dot"))
        super().__init__(train_x=items * 3, test=items * 5)
"""

TRAINER = """
import torch
import torch.nn as nn
from torch.nn import functional as F

from clip import clip
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer


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


class PromptLearner(nn.Module):
    def __init__(self, cfg, names, clip_model):
        super().__init__()
        n, width = cfg.TRAINER.MYCOOP.N_CTX, clip_model.ln_final.weight.shape[0]
        self.ctx = nn.Parameter(torch.randn(n, width) * 0.02)
        tokens = torch.cat([clip.tokenize(" ".join(["X"] * n) + f" {name}.") for name in names])
        with torch.no_grad():
            embedding = clip_model.token_embedding(tokens)
        self.register_buffer("token_prefix", embedding[:, :1])
        self.register_buffer("token_suffix", embedding[:, 1 + n :])
        self.tokenized_prompts = tokens

    def forward(self):
        ctx = self.ctx.expand(len(self.token_prefix), -1, -1)
        return torch.cat([self.token_prefix, ctx, self.token_suffix], 1)


class CustomCLIP(nn.Module):
    def __init__(self, cfg, names, clip_model):
        super().__init__()
        self.prompt_learner = PromptLearner(cfg, names, clip_model)
        self.tokenized_prompts = self.prompt_learner.tokenized_prompts
        self.image_encoder = clip_model.visual
        self.text_encoder = TextEncoder(clip_model)
        self.logit_scale = clip_model.logit_scale
        self.dtype = clip_model.dtype

    def forward(self, image):
        image = self.image_encoder(image.type(self.dtype))
        text = self.text_encoder(self.prompt_learner(), self.tokenized_prompts)
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        return self.logit_scale.exp() * image @ text.t()


@TRAINER_REGISTRY.register()
class MyCoOp(TrainerX):
    def build_model(self):
        from anchoropt_plugin import load_clip

        name = {"tiny": "tiny"}[self.cfg.MODEL.BACKBONE.NAME]  # CoOp looks it up in clip._MODELS

        cfg = self.cfg
        self.model = CustomCLIP(cfg, self.dm.dataset.classnames, load_clip(name))
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("prompt_learner" in name)
        self.optim = build_optimizer(self.model.prompt_learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        loss = F.cross_entropy(self.model(image), label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def load_model(self, directory, epoch=None):
        name = "prompt_learner"
        path = f"{directory}/{name}/model.pth.tar-{epoch}"
        state = torch.load(path, weights_only=False)["state_dict"]
        for key in ("token_prefix", "token_suffix"):
            state.pop(key, None)
        self._models[name].load_state_dict(state, strict=False)
"""

# The imports and the search of CoOp's parse_test_res.py.
PARSER = r"""
import os.path as osp
import re
import sys

from dassl.utils import check_isfile, listdir_nohidden

regex = re.compile(r"\* accuracy: ([\.\deE+-]+)%")
for subdir in listdir_nohidden(sys.argv[1], sort=True):
    fpath = osp.join(sys.argv[1], subdir, "log.txt")
    assert check_isfile(fpath)
    good_to_go = False
    with open(fpath, "r") as f:
        for line in f.readlines():
            good_to_go = good_to_go or line.strip() == sys.argv[2]
            match = regex.search(line.strip())
            if match and good_to_go:
                print(f"file: {fpath}. accuracy: {float(match.group(1)):.2f}%. ")
"""

CONFIG = """
MODEL:
  BACKBONE:
    NAME: tiny
INPUT:
  SIZE: (32, 32)
  TRANSFORMS: ["normalize"]
OPTIM:
  NAME: sgd
  MAX_EPOCH: 2
DATALOADER:
  NUM_WORKERS: 0
  TRAIN_X:
    BATCH_SIZE: 4
USE_CUDA: False
"""


def write_fork(folder: Path) -> Path:
    """Write the repository into a folder, with its data in ``data``, and return the folder."""
    from PIL import Image

    for name, text in {
        "train.py": TRAIN,
        "parse_test_res.py": PARSER,
        "data.py": DATA,
        "trainers/__init__.py": "",
        "trainers/mycoop.py": TRAINER,
        "configs/my.yaml": CONFIG,
        "dots.yaml": "DATASET:\n  NAME: Dots\n",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "data").mkdir()
    for colour in ("red", "green", "blue", "black"):
        Image.new("RGB", (32, 32), colour).save(folder / "data" / f"{colour}.png")
    return folder


def command(cwd: Path, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m anchoropt_plugin`` in a folder as a user of the wheel does."""
    installed = cwd / ".installed"
    if not installed.exists():
        installed.mkdir()
        package = Path(anchoropt_plugin.__file__).parent
        (installed / "anchoropt_plugin").symlink_to(package)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "anchoropt_plugin", *map(str, words)],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": str(installed),
            "HOME": str(cwd / ".home"),
            "ANCHOROPT_CACHE": str(cwd / ".home" / "anchors"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
    )
