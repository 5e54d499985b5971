"""`import dassl`: dassl_compat under that name, or an installed Dassl, repaired."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import subprocess
import sys
import textwrap
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from torch.optim.lr_scheduler import LRScheduler

import anchoropt_plugin
from anchoropt_plugin import UserError, dassl_compat

NAMES = {
    "dassl.engine": "TRAINER_REGISTRY TrainerX TrainerXU build_trainer",
    "dassl.engine.trainer": "TrainerX MetricMeter AverageMeter SummaryWriter",
    "dassl.data": "DataManager DatasetWrapper",
    "dassl.data.data_manager": "DataManager DatasetWrapper build_data_loader build_transform",
    "dassl.data.samplers": "build_sampler RandomSampler SequentialSampler RandomDomainSampler "
    "SeqDomainSampler RandomClassSampler",
    "dassl.modeling": "build_backbone build_head BACKBONE_REGISTRY HEAD_REGISTRY",
    "dassl.data.datasets": "DATASET_REGISTRY Datum DatasetBase build_dataset",
    "dassl.data.datasets.base_dataset": "Datum DatasetBase",
    "dassl.data.transforms": "build_transform INTERPOLATION_MODES",
    "dassl.data.transforms.transforms": "build_transform",
    "dassl.utils": "mkdir_if_missing listdir_nohidden load_pretrained_weights load_checkpoint "
    "read_json write_json set_random_seed collect_env_info setup_logger check_isfile "
    "MetricMeter AverageMeter Registry check_availability count_num_param read_image",
    "dassl.utils.tools": "mkdir_if_missing read_json",
    "dassl.optim": "build_optimizer build_lr_scheduler",
    "dassl.metrics": "compute_accuracy",
    "dassl.config": "get_cfg_default clean_cfg",
    "dassl.evaluation": "build_evaluator",
}


@pytest.mark.parametrize("module", NAMES)
def test_every_module_is_the_runtimes_own(module):
    aliased = importlib.import_module(module)
    assert aliased is importlib.import_module(module.replace("dassl", dassl_compat.__name__, 1))
    for name in NAMES[module].split():
        assert hasattr(aliased, name)


def test_a_class_is_one_under_both_names():
    from dassl.data.datasets.base_dataset import Datum
    from dassl.engine.trainer import TrainerX

    assert Datum is dassl_compat.data.datasets.base_dataset.Datum
    assert TrainerX is dassl_compat.engine.trainer.TrainerX


def test_a_pickled_datum_has_the_public_name():
    from dassl.data.datasets import Datum

    pickled = pickle.dumps(Datum("a.jpg", 3, 0, "cat"))
    assert b"dassl.data.datasets.base_dataset" in pickled
    assert b"anchoropt" not in pickled
    assert pickle.loads(pickled).label == 3


def test_installing_again_changes_nothing():
    before = list(sys.meta_path)
    dassl_compat.install()
    assert sys.meta_path == before


def test_a_folder_of_that_name_is_not_an_installed_dassl(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "dassl").mkdir()
    assert not dassl_compat.is_installed()
    (tmp_path / "dassl" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert dassl_compat.is_installed()


def test_a_module_of_dassl_that_the_runtime_lacks():
    with pytest.raises(ModuleNotFoundError, match=r"dassl\.modeling\.ops"):
        importlib.import_module("dassl.modeling.ops")


@pytest.mark.parametrize("kind", ["backbone", "head"])
def test_networks_are_those_that_a_host_registers(kind, capsys):
    modeling = importlib.import_module("dassl.modeling")
    registry = getattr(modeling, f"{kind.upper()}_REGISTRY")
    build = getattr(modeling, f"build_{kind}")
    with pytest.raises(UserError, match="'resnet50'"):
        build("resnet50")
    registry.register(lambda width: [width])
    try:
        assert build("<lambda>", verbose=True, width=3) == [3]
        assert "<lambda>" in capsys.readouterr().out
    finally:
        registry._obj_map.clear()


# An imitation of Dassl with nothing but the two parts that today's torch breaks.
LOOK_ALIKE = {
    "dassl/__init__.py": "__version__ = '0.6.3'\n",
    "dassl/config/__init__.py": """
        from .defaults import _C

        def get_cfg_default():
            return _C.clone()
        """,
    "dassl/config/defaults.py": """
        from yacs.config import CfgNode

        _C = CfgNode({"TRAINER": {"NAME": ""}})
        """,
    "dassl/optim/__init__.py": "from .lr_scheduler import ConstantWarmupScheduler\n",
    "dassl/optim/lr_scheduler.py": """
        from torch.optim.lr_scheduler import LRScheduler

        class _BaseWarmupScheduler(LRScheduler):
            def __init__(self, optimizer, successor, warmup_epoch, last_epoch=-1, verbose=False):
                self.successor = successor
                self.warmup_epoch = warmup_epoch
                super().__init__(optimizer, last_epoch, verbose)

            def step(self, epoch=None):
                if self.last_epoch >= self.warmup_epoch:
                    self.successor.step(epoch)
                    self._last_lr = self.successor.get_last_lr()
                else:
                    super().step(epoch)

        class ConstantWarmupScheduler(_BaseWarmupScheduler):
            def __init__(
                self, optimizer, successor, warmup_epoch, cons_lr, last_epoch=-1, verbose=False
            ):
                self.cons_lr = cons_lr
                super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)

            def get_lr(self):
                if self.last_epoch >= self.warmup_epoch:
                    return self.successor.get_last_lr()
                return [self.cons_lr for _ in self.base_lrs]
        """,
    "dassl/utils/__init__.py": (
        "from .tools import read_image\nfrom .torchtools import load_checkpoint\n"
    ),
    "dassl/utils/tools.py": """
        from PIL import Image

        def read_image(path):
            return Image.open(path).convert("RGB")
        """,
    "dassl/utils/torchtools.py": """
        import torch

        def load_checkpoint(fpath):
            return torch.load(fpath)
        """,
    "host.py": "from dassl.utils import load_checkpoint, read_image\n",
    "train.py": """
        import numpy as np
        from dassl.config import get_cfg_default

        print("whole numbers", np.arange(2.5).astype(np.int), get_cfg_default().TRAINER.ANCHOROPT)
        """,
    "script.py": """
        import json, logging, sys

        import host
        import torch
        from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

        messages = []
        handler = logging.Handler()
        handler.emit = lambda record: messages.append(record.getMessage())
        logging.getLogger("anchoropt_plugin").addHandler(handler)
        logging.getLogger("anchoropt_plugin").setLevel("INFO")

        import dassl.utils
        from anchoropt_plugin import dassl_compat

        dassl_compat.install()
        dassl_compat.install()
        import dassl.utils.torchtools
        from anchoropt_plugin.files.images import read_image
        from dassl.config import get_cfg_default
        from dassl.optim import ConstantWarmupScheduler

        def scheduler():
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
            cosine = CosineAnnealingLR(optimizer, 4)
            return optimizer, ConstantWarmupScheduler(optimizer, cosine, 1, 1e-5)

        def advance(optimizer, schedule, epochs):
            rates = []
            for _ in range(epochs):
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                schedule.step()
            return rates

        optimizer, schedule = scheduler()
        rates = advance(optimizer, schedule, 2)
        # As Dassl writes it: the scheduler that follows the warm-up is pickled whole.
        pickled = LRScheduler.state_dict(schedule)
        torch.save({"optimizer": optimizer.state_dict(), "scheduler": pickled}, "published")
        torch.save({"scheduler": schedule.state_dict()}, "own")
        rates += advance(optimizer, schedule, 2)

        optimizer, schedule = scheduler()
        published = host.load_checkpoint("published")
        optimizer.load_state_dict(published["optimizer"])
        schedule.load_state_dict(published["scheduler"])
        torch.load("own", weights_only=True)
        print(json.dumps({
            "file": dassl.__file__,
            "messages": messages,
            "keys": [*get_cfg_default(), *get_cfg_default().TRAINER],
            "position": get_cfg_default().TRAINER.ANCHOROPT.POSITION,
            "same": dassl.utils.load_checkpoint is dassl.utils.torchtools.load_checkpoint,
            "images": [host.read_image is read_image, dassl.utils.tools.read_image is read_image],
            "rates": rates,
            "resumed": advance(optimizer, schedule, 2),
        }))
        """,
}


REGISTRY = """
class Registry:
    def get(self, name): ...
    def registered_names(self): return []

TRAINER_REGISTRY = DATASET_REGISTRY = Registry()

class DatasetBase: ...
class Datum: ...
"""


def look_alike(folder, *words):
    """Run python in a folder with the imitation of Dassl."""
    for name, text in LOOK_ALIKE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    package = Path(anchoropt_plugin.__file__).parents[1]
    run = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={"PYTHONPATH": f"{folder}{os.pathsep}{package}", "PATH": "", "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run


def test_run_needs_no_name_that_an_old_dassl_lacks(tmp_path):
    # Neither clean_cfg nor setup_logger is there, and np.int is removed from numpy.
    for name in ("engine", "data", "data/datasets"):
        (tmp_path / "dassl" / name).mkdir(parents=True)
        (tmp_path / "dassl" / name / "__init__.py").write_text("from dassl.registry import *\n")
    (tmp_path / "dassl/registry.py").write_text(REGISTRY)
    run = look_alike(tmp_path, "-m", "anchoropt_plugin", "run", "train.py")
    assert "whole numbers [0 1 2]" in run.stdout and "POSITION: sinkhorn" in run.stdout


def test_the_version_names_an_installed_dassl(tmp_path):
    run = look_alike(tmp_path, "-m", "anchoropt_plugin", "--version")
    assert run.stdout.endswith(f"\nDassl 0.6.3 in {tmp_path / 'dassl'}\n")


def test_an_installed_dassl_wins_and_is_repaired(tmp_path):
    run = look_alike(tmp_path, "script.py")
    report = json.loads(run.stdout.splitlines()[-1])
    assert report["file"] == str(tmp_path / "dassl" / "__init__.py")
    # The schedulers are broken since torch 2.7.
    broken = ["dassl.optim.lr_scheduler"] * ("verbose" not in signature(LRScheduler).parameters)
    broken += ["dassl.utils.load_checkpoint", "dassl.utils.read_image"]
    broken += ["numpy for dassl"] * (np.lib.NumpyVersion(np.__version__) >= "1.24.0")
    named = [message.removeprefix("repaired ").partition(":")[0] for message in report["messages"]]
    assert named == broken, "each repair is named once"
    assert report["same"]
    assert report["images"] == [True, True]
    assert report["keys"] == ["TRAINER", "NAME", "ANCHOROPT"]
    assert report["position"] == "sinkhorn"
    assert report["rates"][:2] == [1e-5, 0.1]
    assert report["resumed"] == pytest.approx(report["rates"][2:])
