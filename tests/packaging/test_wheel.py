"""The wheel as a user gets it: its files, and the types that mypy sees in the user's code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anchoropt_plugin import load_clip
from anchoropt_plugin.encoders.image_classifier import digest_of
from anchoropt_plugin.files.class_weights import ClassWeights, ImageInput, write_class_weights

ROOT = Path(__file__).parents[2]

USER_CODE = """\
from typing import Any

import torch
from anchoropt_plugin import AnchorPositionModule, AnchorTokens, TextTower
from anchoropt_plugin import accelerate, anchoropt, attach, attached, fast_text, load_clip


@fast_text
class Plain:
    def build_model(self) -> None: ...


@anchoropt(position="identity")
@anchoropt
class Host:
    lr: float = 0.1


def use(learner: torch.nn.Module) -> None:
    anchors = AnchorTokens.learn(TextTower(load_clip("tiny")), ["cat"], [["a cat."]])
    reveal_type(attach(learner, anchors.values))
    reveal_type(attached(learner))
    reveal_type(AnchorPositionModule(2, anchors.values).matrix())
    reveal_type(accelerate(learner))
    reveal_type(anchors)
    reveal_type(Host)
    reveal_type(Plain)
    reveal_type(Host().lr)
"""

REVEALED = [
    "anchoropt_plugin.method.position.AnchorPositionModule",
    "anchoropt_plugin.method.position.AnchorPositionModule | None",
    "torch._tensor.Tensor",
    "list[anchoropt_plugin.encoders.fast_forward.FastForward]",
    "anchoropt_plugin.method.anchors.AnchorTokens",
    "def () -> user.Host",
    "def () -> user.Plain",
    "float",
]


def run(*command: str, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel, built from a copy without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("anchoropt_plugin", "datasets", "trainers"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")
    run("pip", "wheel", *quiet, "--no-build-isolation", "-w", str(folder), ".", cwd=source)
    (wheel,) = folder.glob("*.whl")
    run("pip", "install", *quiet, "--target", str(folder / "site"), str(wheel), cwd=folder)
    return folder / "site"


def test_the_wheel_installs_the_package_alone_with_its_data(installed: Path) -> None:
    names = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert names == {"anchoropt_plugin"}
    package = installed / "anchoropt_plugin"
    assets = {path.name for path in (ROOT / "anchoropt_plugin/assets").iterdir()}
    assert {path.name for path in (package / "assets").iterdir()} == assets
    assert (package / "py.typed").is_file()


def test_the_wheel_works_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    code = "import anchoropt_plugin as a; print(a.__file__); a.load_clip('tiny')"
    (tmp_path / "code.py").write_text(f"import sys; sys.modules['sklearn'] = None; {code}")
    printed = run("code", cwd=tmp_path, PYTHONPATH=f"{installed}{os.pathsep}{tmp_path}")
    assert printed.startswith(str(installed))


def test_exported_class_weights_need_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    visual = load_clip("tiny").visual
    images = ImageInput([32, 32], "bicubic", [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    texts = ["cat", "dog"], "tiny", "", digest_of(visual)
    given = ClassWeights(torch.eye(2, 128), 10.0, *texts, images)
    write_class_weights(given, tmp_path / "weights.safetensors")
    grey = Image.effect_noise((32, 32), 90)
    image = Image.merge("RGB", [grey, grey.rotate(180), grey.point(lambda x: x // 2)])
    image.save(tmp_path / "image.png")
    flags = "--model-dir", "weights.safetensors", "--json", "image.png"
    printed = run("anchoropt_plugin", "predict", *flags, cwd=tmp_path, PYTHONPATH=str(installed))
    pixels = (np.asarray(image) / 255 - images.mean) / images.std
    features = visual(torch.tensor(pixels).float().permute(2, 0, 1)[None])[0]
    wanted = (10 * features[:2] / features.norm()).softmax(-1).tolist()
    (found,) = json.loads(printed)
    assert found["probabilities"] == pytest.approx({"cat": wanted[0], "dog": wanted[1]}, abs=1e-5)


def test_mypy_sees_the_types_in_a_users_project(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER_CODE)
    # --strict, with nothing of this repository's configuration; MYPYPATH is as site-packages.
    said = run(
        *("mypy", "--strict", "--config-file=", "--follow-imports=silent"),
        *("--cache-dir", str(ROOT / ".mypy_cache/user"), "user.py"),
        cwd=tmp_path,
        MYPYPATH=str(installed),
    )
    notes = [line for line in said.splitlines() if "Revealed type" in line]
    assert [line.split('"')[1] for line in notes] == REVEALED
