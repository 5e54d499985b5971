"""Find the files of a CLIP, and read their tensors; no file can run code."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError, nearest
from ..files.checkpoint_folder import without_module
from ..files.checkpoints import check_archive
from ..files.readers import read_json
from ..files.torchscript import is_torchscript, read_torchscript
from . import weights_huggingface, weights_openclip
from .architecture import OPENAI, Architecture
from .hub import HUB, OPEN_CLIP, hub_folder, open_clip_config, open_clip_weights
from .openai_clip import clip
from .refused_towers import refuse_by_tensors

TINY = "tiny"
"""The backbone name of the embedded model."""

BY_NAME = "openai"
"""The configuration of OpenAI's own CLIPs."""

_TINY_FILE = Path(__file__).parents[1] / "assets" / "tiny_clip.pt"
_WEIGHTS = {
    "open_clip_config.json": (
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.safetensors",
        "open_clip_pytorch_model.bin",
        "open_clip_pytorch_model.pt",
    ),
    "config.json": (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
}
"""The files with weights beside a configuration; the first that exists counts."""
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_OPENAI_BUFFERS = ("input_resolution", "context_length", "vocab_size")
"""Numbers among the tensors of OpenAI's archives; no other CLIP has these."""
_NOT_WEIGHTS = (*_OPENAI_BUFFERS, "attn_mask", "position_ids")


class WeightFile(NamedTuple):
    """The weights of a CLIP.

    Attributes:
        path: the file; or the index of several files, as transformers splits large models.
        architecture: what the configuration beside it tells; None without one.
    """

    path: Path
    architecture: Architecture | None = None


class Weights(NamedTuple):
    """What a file of weights holds.

    Attributes:
        state: the tensors by name; ``in_openai_layout`` renames those of other libraries.
        architecture: what the file itself tells; None if it tells nothing.
        token_ids: the tokens whose embeddings the file has; None if it has all.
    """

    state: dict[str, Tensor]
    architecture: Architecture | None = None
    token_ids: Tensor | None = None


def find(backbone: str, download_root: str | None) -> WeightFile:
    """Return the weights of a backbone; download them if needed.

    Raises:
        UserError: they do not exist, cannot be downloaded, or are of another architecture.
    """
    if not backbone:
        raise UserError(
            "no CLIP is named: give MODEL.BACKBONE.NAME (by --config-file or --backbone)"
        )
    if backbone == TINY:
        return WeightFile(_TINY_FILE, OPENAI)
    if backbone in clip.available_models():
        return WeightFile(_download(backbone, download_root), OPENAI)
    if backbone.startswith(HUB):
        return _in_folder(hub_folder(backbone, _WEIGHTS, download_root))
    if backbone.startswith(OPEN_CLIP):
        file, told = open_clip_weights(backbone, download_root)
        return WeightFile(file, weights_openclip.architecture_of(told, backbone))
    path = Path(backbone).expanduser()
    if path.is_file():
        return WeightFile(path)
    if path.is_dir():
        return _in_folder(path)
    names = [TINY, *clip.available_models()]
    remedy = (
        "give (--backbone) the path of a file or folder with CLIP weights (OpenAI's, open_clip's "
        f"or transformers'), {HUB}OWNER/NAME, {OPEN_CLIP}MODEL/TAG, or one of {', '.join(names)}"
    )
    if path.suffix or (path.parent != Path() and path.parent.is_dir()):
        raise UserError(f"there is no file {backbone!r}: {remedy}")
    raise UserError(f"no backbone {backbone!r}{nearest(backbone, names)}: {remedy}")


def _download(name: str, root: str | None) -> Path:
    target = root or str(Path("~/.cache/clip").expanduser())
    model = name.replace("/", "-").replace("@336px", "-336")
    try:
        return Path(clip.clip._download(clip.clip._MODELS[name], target))
    except (OSError, RuntimeError) as error:  # no network, no room, a wrong checksum
        raise UserError(
            f"the weights of {name} could not be downloaded to {target} ({one_line(error)}): "
            "give a file or folder as the backbone instead, with weights of OpenAI, open_clip or "
            f"transformers; or a hub name, {OPEN_CLIP}{model}-quickgelu/openai, or for example "
            f"{HUB}openai/clip-vit-base-patch16"
        ) from error


def _in_folder(folder: Path) -> WeightFile:
    configs = [name for name in _WEIGHTS if (folder / name).is_file()]
    for config in configs:
        for name in _WEIGHTS[config]:
            if (folder / name).is_file():
                return WeightFile(folder / name, read_architecture(folder / config))
    others = [path for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES]
    if configs and len(others) == 1:
        return WeightFile(others[0], read_architecture(folder / configs[0]))
    what = f"{configs[0]}, but not its weights" if configs else f"no {' and no '.join(_WEIGHTS)}"
    found = f"; it has {', '.join(path.name for path in others)}" if others else ""
    raise UserError(f"the folder {folder} has {what}{found}: give the file with the weights")


def architecture_of(config: str) -> Architecture:
    """Return the architecture that a ``config`` of ``load_clip`` names.

    Raises:
        UserError: no such file, or a configuration of another architecture.
    """
    if config == BY_NAME:
        return OPENAI
    if config.startswith(OPEN_CLIP):
        return weights_openclip.architecture_of(open_clip_config(config), config)
    path = Path(config).expanduser()
    if not path.is_file():
        raise UserError(
            f"the configuration {config!r} of the CLIP weights is neither {BY_NAME!r} nor a file: "
            f"give a json file of open_clip or transformers, or {OPEN_CLIP}MODEL"
        )
    return read_architecture(path)


def read_architecture(path: Path) -> Architecture:
    """Return the architecture that a json file of open_clip or transformers tells.

    Raises:
        UserError: an unreadable file, or a configuration of another architecture.
    """
    config = read_json(path)
    try:
        if "vision_cfg" in config.get("model_cfg", config):
            return weights_openclip.architecture_of(config, path)
        return weights_huggingface.architecture_of(config, _preparation(path.parent), path)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not describe a CLIP ({one_line(error)}): give a configuration of "
            "open_clip or transformers"
        ) from error


def _preparation(folder: Path) -> Mapping[str, Any] | None:
    """Return how the processor of transformers in a folder prepares images."""
    if (folder / "preprocessor_config.json").is_file():
        found: Mapping[str, Any] = read_json(folder / "preprocessor_config.json")
        return found
    if (folder / "processor_config.json").is_file():  # of transformers from 5
        return read_json(folder / "processor_config.json").get("image_processor")
    return None


def read(path: Path) -> Weights:
    """Read a file of weights: of OpenAI, open_clip or transformers, also training checkpoints.

    Raises:
        UserError: the file is damaged, holds no state dict or a model of another architecture, or
            could only be read by running code in it.
    """
    content = _read_parts(path) if path.suffix == ".json" else _read(path)
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        raise UserError(f"{path} is no CLIP state dict: it holds a {type(state).__name__}")
    state = without_module(state)
    refuse_by_tensors(state, path)
    is_openais = "token_ids" in content or not state.keys().isdisjoint(_OPENAI_BUFFERS)
    return Weights(
        {name: tensor for name, tensor in state.items() if not name.endswith(_NOT_WEIGHTS)},
        OPENAI if is_openais or is_torchscript(path) else None,
        content.get("token_ids"),
    )


def in_openai_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of any library under OpenAI's names and in OpenAI's shapes.

    Raises:
        KeyError: a projection of an attention is missing.
    """
    if any(name.startswith(weights_huggingface.FIRST) for name in state):
        return weights_huggingface.in_openai_layout(state)
    return weights_openclip.in_openai_layout(state)


def _read_parts(index: Path) -> dict[str, Any]:
    """Return the tensors of all files that an index of transformers names."""
    try:
        names = sorted({Path(name).name for name in read_json(index)["weight_map"].values()})
    except (AttributeError, KeyError, TypeError) as error:
        raise _damaged(index, error) from error
    parts = [_read(index.parent / name) for name in names]
    return {key: tensor for part in parts for key, tensor in part.items()}


def _read(path: Path) -> dict[str, Any]:
    """Return the dictionary of tensors in a file of any kind."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        check_archive(path)
        if is_torchscript(path):
            return read_torchscript(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)|refused: (\S+)", str(error))
        if refused:
            name = refused[1] or refused[2]
            raise UserError(
                f"{path} was not read: reading it would run code in it ({name}); save only the "
                "model's state_dict"
            ) from error
        raise _damaged(path, error) from error
    except Exception as error:  # a damaged file fails in a dozen ways: zip, key, end of file, …
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is not a CLIP model: it holds a {type(content).__name__}, not a state dict"
        )
    return content


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be read as CLIP weights ({one_line(error)}): "
        "it is damaged or incomplete, copy it anew"
    )


def one_line(error: Exception) -> str:
    """Return the message of an exception in one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
