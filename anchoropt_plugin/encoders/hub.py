"""Download CLIPs by their names on the Hugging Face hub and in open_clip's list of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, nearest
from ..files.readers import read_json

HUB = "hf-hub:"
"""Start of the name of a repository on the hub, as open_clip writes it."""
OPEN_CLIP = "open_clip:"
"""Start of a name MODEL/TAG in open_clip's list, or of the name of one of its models."""
CONFIG_KEY = "a train.py with the key MODEL.BACKBONE.CONFIG takes it there"
"""Behind what to give to ``load_clip``: a user's own ``train.py`` may not know the key."""

_PREPARATIONS = ("preprocessor_config.json", "processor_config.json")


def hub_folder(name: str, files: Mapping[str, Iterable[str]], root: str | None) -> Path:
    """Download a repository ``hf-hub:OWNER/NAME`` and return its folder.

    Args:
        name: of the repository.
        files: names of configurations, each with those of the files of weights beside it; the
            first that exists is downloaded.
        root: folder of downloads; None is the hub's own.

    Raises:
        UserError: a package is missing, the download fails, or the repository holds no such files.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import EntryNotFoundError
    except ImportError as error:
        raise _missing(name, "open_clip_torch or transformers", "transformers") from error
    repository = name.removeprefix(HUB)

    def get(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(repository, file, cache_dir=root))
        except EntryNotFoundError:
            return None
        except Exception as error:  # no network, no such repository, no permission, a wrong name
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{name} could not be downloaded ({reason}): check the name, or download its "
                "folder elsewhere and give the path"
            ) from error

    for config, weights in files.items():
        if get(config) is None:
            continue
        for file in weights:
            path = get(file)
            if path is None:
                continue
            further = {*read_json(path)["weight_map"].values()} if path.suffix == ".json" else ()
            for one in (*further, *_PREPARATIONS):
                get(one)
            return path.parent
    raise UserError(
        f"{name} could not be downloaded, or holds no CLIP: expected {' or '.join(files)}, and "
        "weights beside it"
    )


def open_clip_weights(name: str, root: str | None) -> tuple[Path, dict[str, Any]]:
    """Download weights ``open_clip:MODEL/TAG``; return the file and open_clip's configuration.

    Raises:
        UserError: open_clip is missing, has no such model or tag, or the download fails.
    """
    model, _, tag = name.removeprefix(OPEN_CLIP).partition("/")
    config = open_clip_config(f"{OPEN_CLIP}{model}")
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    told = open_clip.get_pretrained_cfg(model, tag)
    if not told:
        raise UserError(f"open_clip has no weights {tag!r} of {model}: {', '.join(tags) or 'none'}")
    quick = bool(told.get("quick_gelu"))
    if quick != bool(config["model_cfg"].get("quick_gelu")):
        plain = model.removesuffix("-quickgelu")
        other = f"{OPEN_CLIP}{plain}{'-quickgelu' if quick else ''}/{tag}"
        raise UserError(
            f"{name}: these weights were trained with {'QuickGELU' if quick else 'GELU'}: give "
            f"{other}"
        )
    try:
        path = Path(open_clip.download_pretrained(told, cache_dir=root))
    except Exception as error:  # no network, a wrong checksum
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name} could not be downloaded ({reason}): download the file elsewhere and give "
            f"load_clip(path, config='{OPEN_CLIP}{model}'); {CONFIG_KEY}"
        ) from error
    return path, {**config, "preprocess_cfg": told}


def open_clip_config(name: str) -> dict[str, Any]:
    """Return the configuration of one of open_clip's models, ``open_clip:MODEL``.

    Raises:
        UserError: open_clip is missing, or has no such model.
    """
    try:
        import open_clip
    except ImportError as error:
        raise _missing(name, "open_clip_torch", "open-clip") from error
    model = name.removeprefix(OPEN_CLIP)
    config = open_clip.get_model_config(model)
    if config is None:
        hint = nearest(model, open_clip.list_models())
        raise UserError(f"open_clip has no model {model!r}{hint}: see open_clip.list_models()")
    return {"model_cfg": config}


def _missing(name: str, package: str, extra: str) -> UserError:
    return UserError(f"{name} needs {package}: pip install 'anchoropt-plugin[{extra}]'")
