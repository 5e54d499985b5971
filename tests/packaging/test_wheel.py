"""The wheel as a user gets it: its files, and the types that mypy sees in the user's code."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from anchoropt_plugin import load_clip
from anchoropt_plugin.encoders.image_classifier import digest_of
from anchoropt_plugin.files.class_weights import ClassWeights, ImageInput, write_class_weights
from anchoropt_plugin.version import VERSION

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


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Return what a command prints on both streams."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


class Environment(NamedTuple):
    bin: Path
    packages: Path


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A new environment with the wheel, which is built from a copy without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("anchoropt_plugin", "trainers"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = sys.executable, "-m", "pip", "--disable-pip-version-check"
    quiet = "--quiet", "--no-deps", "--no-index"
    run(*pip, "wheel", *quiet, "--no-build-isolation", "-w", folder, ".", cwd=source)
    (wheel,) = folder.glob("*.whl")
    new = venv.EnvBuilder().ensure_directories(folder / "environment")
    venv.create(new.env_dir, with_pip=False)
    run(*pip, "--python", new.env_exe, "install", *quiet, wheel, cwd=folder)
    # The wheel's dependencies are those of the running environment. Its anchoropt_plugin is not
    # found: it comes later on the path, or by a .pth file, which is read in site-packages only.
    found = [path for path in sys.path if path.endswith("-packages")]
    (packages,) = Path(new.env_dir).glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(found))
    return Environment(Path(new.bin_path), packages)


def test_the_wheel_installs_the_package_alone_with_its_data(environment: Environment) -> None:
    files = [path for path in environment.packages.iterdir() if path.suffix != ".pth"]
    assert {path.name for path in files if path.suffix != ".dist-info"} == {"anchoropt_plugin"}
    package = environment.packages / "anchoropt_plugin"
    assets = {path.name for path in (ROOT / "anchoropt_plugin/assets").iterdir()}
    assert {path.name for path in (package / "assets").iterdir()} == assets
    assert (package / "py.typed").is_file()


def test_the_wheel_works_outside_the_repository(environment: Environment, tmp_path: Path) -> None:
    code = "import anchoropt_plugin as a; a.load_clip('tiny'); print(a.__file__)"
    (tmp_path / "code.py").write_text(f"import sys; sys.modules['sklearn'] = None; {code}")
    said = run(environment.bin / "python", "code.py", cwd=tmp_path)
    assert said == f"{environment.packages}/anchoropt_plugin/__init__.py\n", "nothing else is said"


def test_the_command_of_the_wheel(environment: Environment, tmp_path: Path) -> None:
    (metadata,) = environment.packages.glob("anchoropt_plugin-*/METADATA")
    assert "Project-URL: Paper, https://arxiv.org/abs/2511.21188\n" in metadata.read_text()
    said = run(environment.bin / "anchoropt", "--version", cwd=tmp_path)
    assert said.startswith(f"anchoropt-plugin {VERSION}\ntorch {torch.__version__}\nDassl ")
    # Modules of the working directory come first, as with python -m.
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/__init__.py").write_text("raise SystemExit('its own clip')")
    with pytest.raises(AssertionError, match="its own clip"):
        run(environment.bin / "anchoropt", "--version", cwd=tmp_path)


def test_exported_class_weights_need_the_wheel_alone(
    environment: Environment, tmp_path: Path
) -> None:
    visual = load_clip("tiny").visual
    images = ImageInput([32, 32], "bicubic", [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    texts = ["cat", "dog"], "tiny", "", digest_of(visual)
    given = ClassWeights(torch.eye(2, 128), 10.0, *texts, images)
    write_class_weights(given, tmp_path / "weights.safetensors")
    grey = Image.effect_noise((32, 32), 90)
    image = Image.merge("RGB", [grey, grey.rotate(180), grey.point(lambda x: x // 2)])
    image.save(tmp_path / "image.png")
    flags = "--model-dir", "weights.safetensors", "--json", "image.png"
    printed = run(environment.bin / "anchoropt", "predict", *flags, cwd=tmp_path)
    pixels = (np.asarray(image) / 255 - images.mean) / images.std
    features = visual(torch.tensor(pixels).float().permute(2, 0, 1)[None])[0]
    wanted = (10 * features[:2] / features.norm()).softmax(-1).tolist()
    (found,) = json.loads(printed)
    assert found["probabilities"] == pytest.approx({"cat": wanted[0], "dog": wanted[1]}, abs=1e-5)
    code = "import anchoropt_plugin as a; print(a.load_predictor(WEIGHTS)('image.png'))"
    code = code.replace("WEIGHTS", "'weights.safetensors'")
    said = run(environment.bin / "python", "-c", code, cwd=tmp_path)
    assert ast.literal_eval(said) == found["probabilities"], "nothing else is said"


def test_mypy_sees_the_types_in_a_users_project(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER_CODE)
    # --strict, with nothing of this repository's configuration; MYPYPATH is as site-packages.
    said = run(
        *(sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"),
        *("--cache-dir", str(ROOT / ".mypy_cache/user"), "user.py"),
        cwd=tmp_path,
        MYPYPATH=str(environment.packages),
    )
    notes = [line for line in said.splitlines() if "Revealed type" in line]
    assert [line.split('"')[1] for line in notes] == REVEALED
