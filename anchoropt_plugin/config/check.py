"""Check the values of a merged configuration: one table of rules, all faults in one message."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import UserError

_Rule = tuple[str, Callable[[Any], bool]]


def _numbers(count: int, low: float, high: float = math.inf) -> Callable[[Any], bool]:
    return lambda values: (
        len(values) == count and all(_is_number(x) and low <= x <= high for x in values)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_whole(values: Any) -> bool:
    return all(type(value) is int for value in values)


def _one_of(*names: str) -> _Rule:
    return f"one of {', '.join(names)}", lambda x: x in names


def _is_sound(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_sound, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return not (isinstance(value, str) and "\0" in value)


def _has_one_field(template: str) -> bool:
    try:
        fields = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError:
        return False
    return fields == [("", "", None)]


_TINY = math.ulp(0.0)
_SOUND: _Rule = ("finite, or text without NUL", _is_sound)
_POSITIVE: _Rule = ("positive", lambda x: x > 0)
_NOT_NEGATIVE: _Rule = ("0 or more", lambda x: x >= 0)
_SHARE: _Rule = ("from 0 to 1", lambda x: 0 <= x <= 1)
_BELOW_ONE: _Rule = ("from 0 to below 1", lambda x: 0 <= x < 1)
_SIZES: _Rule = ("two positive whole numbers", lambda x: _are_whole(x) and _numbers(2, 1)(x))
_NAMES: _Rule = ("a list of names", lambda x: all(isinstance(name, str) for name in x))

LOGGERS = ("tensorboard", "csv", "wandb")
"""The writers that ``TRAIN.LOGGERS`` may name."""

_RULES: dict[str, _Rule] = {
    "OUTPUT_DIR": ("the name of a folder", bool),
    "SEED": ("below 2**32 (negative: no fixed seed)", lambda x: abs(x) < 2**32),
    "INPUT.SIZE": _SIZES,
    "INPUT.TRANSFORMS": _NAMES,
    "INPUT.PIXEL_MEAN": ("three numbers for pixels from 0 to 1", _numbers(3, -3, 3)),
    "INPUT.PIXEL_STD": ("three positive numbers for pixels from 0 to 1", _numbers(3, _TINY, 3)),
    "INPUT.CROP_PADDING": _NOT_NEGATIVE,
    "INPUT.RRCROP_SCALE": (
        "two fractions of the image, the smaller one first",
        lambda x: _numbers(2, _TINY, 1)(x) and x[0] <= x[1],
    ),
    "INPUT.CUTOUT_N": _NOT_NEGATIVE,
    "INPUT.CUTOUT_LEN": _POSITIVE,
    "INPUT.GN_STD": _NOT_NEGATIVE,
    "INPUT.RANDAUGMENT_N": _NOT_NEGATIVE,
    "INPUT.RANDAUGMENT_M": ("from 0 to 30", lambda x: 0 <= x <= 30),
    "INPUT.COLORJITTER_B": _NOT_NEGATIVE,
    "INPUT.COLORJITTER_C": _NOT_NEGATIVE,
    "INPUT.COLORJITTER_S": _NOT_NEGATIVE,
    "INPUT.COLORJITTER_H": ("from 0 to 0.5", lambda x: 0 <= x <= 0.5),
    "INPUT.RGS_P": _SHARE,
    "INPUT.GB_P": _SHARE,
    "INPUT.GB_K": ("odd and positive", lambda x: x > 0 and x % 2 == 1),
    "DATASET.SUBSAMPLE_CLASSES": _one_of("all", "base", "new"),
    "DATASET.TEMPLATE": ("a text with one {} for the class name", _has_one_field),
    "DATALOADER.NUM_WORKERS": _NOT_NEGATIVE,
    "DATALOADER.K_TRANSFORMS": _POSITIVE,
    "DATALOADER.CACHE_VIEWS": _NOT_NEGATIVE,
    "DATALOADER.TRAIN_X.BATCH_SIZE": _POSITIVE,
    "DATALOADER.TRAIN_U.BATCH_SIZE": _POSITIVE,
    "DATALOADER.TEST.BATCH_SIZE": _POSITIVE,
    "OPTIM.LR": _POSITIVE,
    "OPTIM.WEIGHT_DECAY": _NOT_NEGATIVE,
    "OPTIM.MOMENTUM": _NOT_NEGATIVE,
    "OPTIM.RMSPROP_ALPHA": _NOT_NEGATIVE,
    "OPTIM.ADAM_BETA1": _BELOW_ONE,
    "OPTIM.ADAM_BETA2": _BELOW_ONE,
    "OPTIM.BASE_LR_MULT": _NOT_NEGATIVE,
    "OPTIM.LR_EXP": _NOT_NEGATIVE,
    "OPTIM.STEPSIZE": ("one or more whole numbers", lambda x: x and _are_whole(x)),
    "OPTIM.GAMMA": _NOT_NEGATIVE,
    "OPTIM.WARMUP_CONS_LR": _NOT_NEGATIVE,
    "OPTIM.WARMUP_MIN_LR": _NOT_NEGATIVE,
    "TRAIN.PRINT_FREQ": _POSITIVE,
    "TRAIN.PATIENCE": _NOT_NEGATIVE,
    "TRAIN.LOGGERS": (
        f"a list of {', '.join(LOGGERS)}",
        lambda x: all(one in LOGGERS for one in x),
    ),
    "TEST.FINAL_MODEL": _one_of("last_step", "best_val"),
    "TEST.SPLIT": _one_of("val", "test"),
}


def check_values(cfg: Mapping[str, Any], training: bool = True) -> None:
    """Check the values of a merged configuration; missing keys are not checked.

    Args:
        cfg: the configuration.
        training: whether the run trains, which needs at least one epoch.

    Raises:
        UserError: invalid values; the message names all of them.

    >>> check_values({"OPTIM": {"LR": -1.0, "MAX_EPOCH": 0}})
    Traceback (most recent call last):
        ...
    anchoropt_plugin.errors.UserError: OPTIM.LR is -1.0, but must be positive; OPTIM.MAX_EPOCH is \
0, but must be positive
    """
    rules = {**_RULES, "OPTIM.MAX_EPOCH": _POSITIVE} if training else _RULES
    faults = []
    for key, value in flattened(cfg):
        wanted, holds = rules.get(key, _SOUND) if _is_sound(value) else _SOUND
        if not holds(value):
            faults.append(f"{key} is {value!r}, but must be {wanted}")
    if faults:
        raise UserError("; ".join(faults))


def flattened(cfg: Mapping[str, Any], prefix: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a nested configuration, and their values.

    >>> dict(flattened({"SEED": 1, "OPTIM": {"LR": 0.1}}))
    {'SEED': 1, 'OPTIM.LR': 0.1}
    """
    for key, value in cfg.items():
        path = (*prefix, str(key))
        if isinstance(value, Mapping):
            yield from flattened(value, path)
        else:
            yield ".".join(path), value


def as_in_yaml(value: Any) -> Any:
    """Return a value as a run's config.yaml has it."""
    return [*map(as_in_yaml, value)] if isinstance(value, (list, tuple)) else value
