"""The settings of AnchorOPT: a dataclass, checked once, and its node in a yacs configuration."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from yacs.config import CfgNode

from ..errors import UserError, nearest
from ..method.anchor_learning import StageOne
from ..method.objective import HOTTEST
from ..method.position import POOLINGS
from ..method.relaxations import RELAXATIONS

ENSEMBLES = ("auto", "always", "never", "anchors")
LEARNED, RANDOM = "learned", "random"


class Preset(NamedTuple):
    """Settings that a value of PRESET stands for.

    Attributes:
        settings: those of every host trainer.
        of_host: further ones, by the host trainer's name.
    """

    settings: Mapping[str, Any]
    of_host: Mapping[str, Mapping[str, Any]]


PRESETS: dict[str, Preset] = {
    "": Preset({}, {}),
    # The released code: independent rows from N(0, 1) at the learning rate of the soft tokens,
    # features read K tokens before EOT, Gumbel noise in evaluation, and in deep layers the anchor
    # of the slot before, or of the first of its slots.
    "reference": Preset(
        {
            "position": "gumbel",
            "position_lr": 0.0,
            "position_init": 0.0,
            "position_init_std": 1.0,
            "pooling": "unshifted",
            "sample_at_eval": True,
            "deep_early": True,
            "deep_first": True,
        },
        # Its optimiser gets the soft tokens, and position logits that require no gradient.
        {"CoCoOp": {"position_trained": False, "modules_trained": False}},
    ),
}


@dataclass(frozen=True)
class AnchorOPTConfig:
    """The keys of ``TRAINER.ANCHOROPT`` in lower case. All faults are reported at once.

    Attributes:
        fast_text: put the exact fast text branch in place of the host's text encoder.
        class_chunk: classes encoded at once, for thousands of classes; the backward pass computes
            their activations again. 0 encodes all at once.
        split_classes: with several processes (torchrun), each encodes a part of the classes and
            stores the activations of that part only.
        keep_features: cache the features of images that are seen again; on the CPU, encode new
            images a few at a time with oneDNN.
        use_anchoropt: accepted from published scripts; the trainer's name decides.
        n_ctx: soft tokens of the host, given to its own ``TRAINER.<HOST>.N_CTX``; 0 keeps its own.
            Refused if the host takes another number, that of the words in its ``CTX_INIT``.
        preset: "" or "reference", which does what the released code does with each of its hosts; a
            preset sets keys that were left at their default.
        anchor_len: number K of anchor tokens.
        anchor: "learned" in stage 1; as controls, "random" draws the anchors, and words give their
            embeddings.
        anchor_weights: file of learned anchors (ours or published), or the released folder
            ``anchor_weights``, where the data set's file is found; stage 1 is then skipped.
        anchor_cache: folder of cached anchors; "" is the user's cache folder.
        descriptions: json ``{class name: [sentence, …]}`` for stage 1; "" uses templates.
        max_template_length: largest number of descriptions used per class.
        anchor_epochs: epochs of stage 1.
        anchor_lr: learning rate of stage 1.
        anchor_mse_weight: weight of the distance to the descriptions in stage 1.
        anchor_ce_weight: weight of a cross-entropy on images in stage 1.
        position: relaxation of the position matrix: "sinkhorn" (permutations), "gumbel"
            (independent rows), "soft" (a mixture of tokens in each slot), "identity" (context, then
            anchors).
        position_lr: learning rate of the position logits; 0 uses that of the soft tokens.
        position_init: the position logits start at this multiple of the identity matrix.
        position_init_std: standard deviation of normal noise added to that start.
        position_trained: train the position matrix; False keeps its start, as the released CoCoOp
            does.
        position_task: condition the position matrix on the task: the mean anchor feature of its
            classes.
        gumbel_temp: temperature of the relaxation at the first epoch of stage 2.
        gumbel_temp_end: temperature at the last epoch, reached geometrically; 0 keeps it constant.
        sample_at_eval: draw the position matrix in evaluation, too.
        pooling: "eot", or "unshifted": read features K tokens before EOT.
        deep_early: at deep prompts, read the anchors (and soft tokens that stay) one slot early, in
            the first slot SOS, as the released MaPLe does.
        deep_first: at deep prompts, read a token that is in several slots at the first of them, as
            the released MaPLe does, and not as their mean.
        modules_trained: train the modules of the prompt learner, such as CoCoOp's meta-net; False
            keeps their start and trains its soft tokens, as the released CoCoOp does.
        prompt_ce_weight: weight of the prompt's cross-entropy; the host's further losses stay.
        kd_weight: weight of the distillation.
        kd_temperature: temperature T of the distillation, 100 at most.
        ensemble: average with the anchor logits at test: "auto" does so if a class was not trained;
            "always"; "never"; "anchors" uses the anchor logits alone, as a control.

    >>> AnchorOPTConfig.with_arguments({"preset": "reference"}).position
    'gumbel'
    """

    fast_text: bool = True
    class_chunk: int = 0
    split_classes: bool = False
    keep_features: bool = True
    use_anchoropt: bool = False
    n_ctx: int = 0
    preset: str = ""
    anchor_len: int = 1
    anchor: str = LEARNED
    anchor_weights: str = ""
    anchor_cache: str = ""
    descriptions: str = ""
    max_template_length: int = 10
    anchor_epochs: int = 100
    anchor_lr: float = 0.002
    anchor_mse_weight: float = 1000.0
    anchor_ce_weight: float = 0.0
    position: str = "sinkhorn"
    position_lr: float = 0.05
    position_init: float = 3.0
    position_init_std: float = 0.0
    position_trained: bool = True
    position_task: bool = False
    gumbel_temp: float = 1.0
    gumbel_temp_end: float = 0.0
    sample_at_eval: bool = False
    pooling: str = "eot"
    deep_early: bool = False
    deep_first: bool = False
    modules_trained: bool = True
    prompt_ce_weight: float = 1.0
    kd_weight: float = 1.0
    kd_temperature: float = 1.0
    ensemble: str = "auto"

    def __post_init__(self) -> None:
        faults = [
            f"{key.upper()} is {getattr(self, key)!r}, one of {', '.join(map(repr, known))} is "
            f"wanted{nearest(str(getattr(self, key)), known)}"
            for key, known in (
                ("preset", list(PRESETS)),
                ("position", list(RELAXATIONS)),
                ("pooling", list(POOLINGS)),
                ("ensemble", list(ENSEMBLES)),
            )
            if getattr(self, key) not in known
        ]
        positive = ["anchor_len", "max_template_length", "anchor_epochs", "anchor_lr"]
        positive += ["anchor_mse_weight", "gumbel_temp", "kd_temperature"]
        faults += [f"{key.upper()} must be positive" for key in positive if getattr(self, key) <= 0]
        not_negative = ["n_ctx", "class_chunk", "position_lr", "position_init_std"]
        not_negative += ["gumbel_temp_end", "anchor_ce_weight", "prompt_ce_weight", "kd_weight"]
        faults += [
            f"{key.upper()} must not be negative" for key in not_negative if getattr(self, key) < 0
        ]
        if self.kd_temperature > HOTTEST:
            faults.append(f"KD_TEMPERATURE must be at most {HOTTEST:g}, as float32 rounds")
        if not self.anchor.strip():
            faults.append(f"ANCHOR is {self.anchor!r}: {LEARNED}, {RANDOM}, or words")
        if self.anchor_weights and self.anchor != LEARNED:
            faults.append(f"ANCHOR_WEIGHTS holds learned anchors: it excludes ANCHOR {self.anchor}")
        if self.split_classes and not self.fast_text:
            faults.append("SPLIT_CLASSES is done by the fast text branch: it needs FAST_TEXT True")
        if faults:
            raise UserError("TRAINER.ANCHOROPT: " + "; ".join(faults))

    @classmethod
    def from_cfg(cls, cfg: Any, host: str = "", **arguments: Any) -> AnchorOPTConfig:
        """Read ``cfg.TRAINER.ANCHOROPT``; ``arguments`` fill in keys that were not given there.

        A preset may set further keys for ``host``, the name of the host trainer.

        A node made by a host does not remember which keys were given: those that differ from the
        default count as given. Its N_CTX belongs to the host.

        Raises:
            UserError: values are wrong; all are named.
        """
        # A train.py that never called extend_cfg has no such keys.
        node = cfg.TRAINER.get("ANCHOROPT") or {}
        told = node.given if isinstance(node, Settings) else None
        values = {name: node[name.upper()] for name in _DEFAULTS if name.upper() in node}
        given = {
            name: value
            for name, value in values.items()
            if value != _DEFAULTS[name] or (told and name.upper() in told)
        }
        if told is None:
            given.pop("n_ctx", None)
        return cls.with_arguments({**arguments, **given}, host)

    @classmethod
    def with_arguments(cls, arguments: dict[str, Any], host: str = "") -> AnchorOPTConfig:
        """Return the defaults, changed by the preset for ``host``, then by ``arguments``.

        Raises:
            UserError: a name is unknown, or values are wrong; all are named.
        """
        for name in arguments:
            if name not in _DEFAULTS:
                raise UserError(f"@anchoropt has no setting {name!r}{nearest(name, _DEFAULTS)}")
        preset = PRESETS.get(arguments.get("preset", ""), PRESETS[""])
        return cls(**{**preset.settings, **preset.of_host.get(host, {}), **arguments})

    def stage_one(self, steps: int) -> StageOne:
        """Return the settings of stage 1, with ``steps`` steps an epoch."""
        return StageOne(
            length=self.anchor_len,
            epochs=self.anchor_epochs,
            steps=steps,
            lr=self.anchor_lr,
            mse_weight=self.anchor_mse_weight,
            ce_weight=self.anchor_ce_weight,
        )

    def temperature_at(self, epoch: int, epochs: int) -> float:
        """Return the temperature of the relaxation at an epoch (from 0) of stage 2.

        >>> AnchorOPTConfig(gumbel_temp=1.0, gumbel_temp_end=0.25).temperature_at(1, 3)
        0.5
        """
        if not self.gumbel_temp_end or epochs < 2:
            return self.gumbel_temp
        ratio = self.gumbel_temp_end / self.gumbel_temp
        return float(self.gumbel_temp * ratio ** (epoch / (epochs - 1)))


_DEFAULTS = {field.name: field.default for field in fields(AnchorOPTConfig)}


class _Node(type):
    """The type of nodes that extend yacs's ``CfgNode``.

    yacs merges files only into nodes whose type equals (``==``) its own; these types do.
    """

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is CfgNode

    __hash__ = type.__hash__


class Settings(CfgNode, metaclass=_Node):
    """``TRAINER.ANCHOROPT``: a node that remembers which of its keys were given a value.

    So a key wins over an argument of ``@anchoropt`` even if it was given its default.

    >>> node = Settings({"POSITION": "sinkhorn", "ANCHOR_LEN": 1}).clone()
    >>> node.merge_from_list(["POSITION", "sinkhorn"])
    >>> sorted(node.clone().given)
    ['POSITION']
    """

    @property
    def given(self) -> set[str]:
        """Keys that were given a value since the node was made."""
        return self.__dict__.setdefault("_given", set())

    def __setitem__(self, key: str, value: Any) -> None:
        self.given.add(key)
        super().__setitem__(key, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Settings:
        copy = type(self)(dict(self))
        copy.__dict__.update(deepcopy(self.__dict__, memo))
        return copy


class _Trainers(CfgNode, metaclass=_Node):
    """``TRAINER``: adds missing keys to its node ANCHOROPT.

    A train.py may make that node: the train.py of the released code makes one with nine keys.
    """

    _decode_cfg_value = CfgNode._decode_cfg_value  # else yacs makes nodes in a file of this type

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "ANCHOROPT":
            for name, default in _DEFAULTS.items():
                value.setdefault(name.upper(), default)
        super().__setitem__(key, value)


def extend_cfg(cfg: Any) -> None:
    """Add ``TRAINER.ANCHOROPT`` with its defaults to the yacs configuration of a repository.

    A node that is there, or is added later, keeps its values and gets the missing keys.

    >>> cfg = CfgNode({"TRAINER": CfgNode()})
    >>> extend_cfg(cfg)
    >>> cfg.TRAINER.ANCHOROPT.POSITION
    'sinkhorn'
    """
    if not isinstance(cfg.TRAINER, _Trainers):
        trainers = _Trainers()
        trainers.update(cfg.TRAINER)
        cfg.TRAINER = trainers
    cfg.TRAINER.ANCHOROPT = cfg.TRAINER.get("ANCHOROPT", Settings())
