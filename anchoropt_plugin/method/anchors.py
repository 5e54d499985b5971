"""Anchor tokens: learned, random or those of words; their features of classes; their file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor, nn

from ..encoders.class_names import as_words
from ..encoders.clip_models import tokenize, words_of
from ..encoders.equivalence import tower_of
from ..encoders.text_tower import TextTower
from ..errors import UserError
from ..files import checkpoints
from .anchor_learning import INIT_STD, ImageBatches, StageOne, learned
from .anchor_prompts import AnchorPrompts
from .descriptions import of_classes, placeholder

PUBLISHED_NAME = "anchor_ctx_1"
"""Name of the tokens in published checkpoints; our files have the same layout."""
PUBLISHED_FILE = Path("anchor_prompt_learner", "model.pth.tar")


@dataclass
class AnchorTokens:
    """Anchor tokens.

    Attributes:
        values: (K, d), float32, on the CPU.
        losses: the loss at each epoch of stage 1, if it was run.
        key: identifies the content they were learned from, or "".
    """

    values: Tensor
    losses: list[float] = field(default_factory=list)
    key: str = ""

    def __repr__(self) -> str:
        count, width = self.values.shape
        learned = ""
        if self.losses:
            first, last = self.losses[0], self.losses[-1]
            learned = f", {len(self.losses)} epochs, loss {first:.4g} → {last:.4g}"
        return f"{type(self).__name__}({count} × {width}{learned})"

    @classmethod
    def learn(
        cls,
        tower: TextTower | nn.Module,
        class_names: Sequence[str],
        descriptions: Sequence[Sequence[str]] | Mapping[str, Sequence[str]],
        settings: StageOne | None = None,
        *,
        images: ImageBatches | None = None,
        on_epoch: Callable[[int, float], None] | None = None,
    ) -> AnchorTokens:
        """Learn anchor tokens so that ``[A] of {class}.`` is near the class's descriptions.

        The loss is ``mse_weight`` times the mean of (a_c − t_{c,m})² over classes, descriptions and
        features. It depends only on the mean of a class's descriptions, so each class has one
        target. No image is read unless ``ce_weight`` > 0. Anchors and loss stay in float32, and the
        gradient is scaled on its way through the tower, so that half precision neither overflows
        nor vanishes.

        The start is the same for every seed, so that seeds can share anchors.

        Args:
            tower: the plain CLIP, or its text tower; also a model of open_clip or a ``CLIPModel``
                of transformers.
            class_names: C names.
            descriptions: C lists of sentences, of any length, in the order of the names; or a dict
                of such lists by class name, as in a file of descriptions.
            settings: see ``StageOne``.
            images: epochs of image features; needed if ``ce_weight`` > 0.
            on_epoch: called with (epoch, loss) after each epoch.

        Raises:
            ValueError: the names are not a list of texts, the descriptions are not one list of
                texts for each class, or a list is empty. A set is refused: it has no order.
            UserError: no class names, a dict without a class, a text that is longer than CLIP
                reads, a loss that is not finite, a model that is no CLIP or was loaded in inference
                mode, or a text tower of another architecture than CLIP's.

        Source: AnchorOPT (Li et al., arXiv 2511.21188), stage 1.

        >>> from anchoropt_plugin import load_clip
        >>> tower = TextTower(load_clip("tiny"))
        >>> texts = [["a photo of a red circle."], ["a photo of a blue star."]]
        >>> anchors = AnchorTokens.learn(tower, ["circle", "star"], texts, StageOne(epochs=5))
        >>> tuple(anchors.values.shape), anchors.losses[-1] < anchors.losses[0]
        ((1, 128), True)
        """
        settings = settings or StageOne()
        tower = tower_of(tower)
        _check_names(class_names)
        if isinstance(descriptions, Mapping):
            descriptions = of_classes(descriptions, class_names, "the dict of descriptions")
        is_list = isinstance(descriptions, Sequence) and not isinstance(descriptions, str)
        for given in descriptions if is_list else [descriptions]:
            if not _is_texts(given):
                raise ValueError(
                    "descriptions must be one list of sentences per class, in the order of "
                    f"class_names, or a dict of such lists; got a {type(given).__name__}"
                )
        if len(descriptions) != len(class_names) or not all(descriptions):
            raise ValueError(
                f"{len(class_names)} classes and {len(descriptions)} lists of descriptions: "
                "expected one list of one or more sentences for each class"
            )
        for name, sentences in zip(class_names, descriptions, strict=True):
            for sentence in sentences:
                sign = placeholder(sentence, name)
                if sign or not words_of(sentence):
                    what = (
                        f"write the name of the class in place of {sign}" if sign else "it is empty"
                    )
                    raise ValueError(f"a description of {name!r} is {sentence!r}: {what}")
        if any(parameter.is_inference() for parameter in tower.clip.parameters()):
            raise UserError(
                "the CLIP was loaded in torch.inference_mode(), so no anchors can be learned with "
                "it: load it outside"
            )
        # Under a caller's autocast, features and loss would be rounded.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(tower.device.type, enabled=False),
        ):
            values, losses = learned(tower, class_names, descriptions, settings, images, on_epoch)
        return cls(values, losses)

    @classmethod
    def random(cls, tower: TextTower | nn.Module, length: int) -> AnchorTokens:
        """Draw tokens from N(0, 0.02²), as soft tokens start: a control for stage 1."""
        shape = (length, TextTower.of(tower).dim)
        return cls(INIT_STD * torch.randn(shape, dtype=torch.float32))

    @classmethod
    def of_words(cls, tower: TextTower | nn.Module, words: str, length: int) -> AnchorTokens:
        """Return the embeddings of ``words``, as a control for stage 1; ``_`` is read as a blank.

        Raises:
            UserError: the words are not ``length`` tokens.

        >>> from anchoropt_plugin import load_clip
        >>> AnchorTokens.of_words(TextTower(load_clip("tiny")), "photo", 1).values.shape
        torch.Size([1, 128])
        """
        tokens = tokenize([as_words(words)])
        found = int(tokens.argmax()) - 1
        if found != length:
            raise UserError(f"{words!r} is {found} tokens: give the length {found}, not {length}")
        embedded = TextTower.of(tower).embed(tokens)[0, 1 : 1 + length]
        return cls(embedded.detach().float().cpu())

    @torch.no_grad()
    def class_features(self, tower: TextTower | nn.Module, class_names: Sequence[str]) -> Tensor:
        """Return the features of the anchor prompts ``[A] of {class}.``: (C, e), float32, length 1.

        The scaled cosines of an image's feature with them are the anchor logits l_a.

        Args:
            tower: as in ``learn``.
            class_names: C names, also of other classes than those of stage 1.

        Raises:
            ValueError: the names are not a list of texts.
            UserError: no class names, or a model that ``learn`` refuses.

        >>> from anchoropt_plugin import load_clip
        >>> anchors = AnchorTokens(torch.zeros(1, 128))
        >>> anchors.class_features(load_clip("tiny"), ["star", "ring"]).shape
        torch.Size([2, 128])
        """
        _check_names(class_names)
        tower = tower_of(tower)
        anchors = self.values.to(tower.device)
        with torch.autocast(tower.device.type, enabled=False):
            return AnchorPrompts(tower, class_names, len(anchors)).encode(anchors)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the anchors, whole or not at all, in the layout of published ones."""
        content = {
            "state_dict": {PUBLISHED_NAME: self.values},
            "epoch": len(self.losses),
            "optimizer": None,
            "scheduler": None,
            "val_result": None,
            "losses": self.losses,
            "key": self.key,
        }
        path = Path(path).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.save(content, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AnchorTokens:
        """Read our anchors or published ones; no code in the file is run.

        Args:
            path: the file, or a folder with ``anchor_prompt_learner/model.pth.tar``.

        Raises:
            UserError: the file is missing, or holds no finite anchor tokens (K, d).
        """
        path = Path(path).expanduser()
        if path.is_dir():
            path = path / PUBLISHED_FILE
        content = checkpoints.load(path)
        values = content.get("state_dict", {}).get(PUBLISHED_NAME)
        if not isinstance(values, Tensor) or values.dim() != 2:
            raise UserError(
                f"{path} holds no anchor tokens: expected a tensor {PUBLISHED_NAME} (K, d)"
            )
        losses = content.get("losses")
        losses = losses if isinstance(losses, list) else []
        return cls(values.float(), losses, str(content.get("key", "")))


def _check_names(given: object) -> None:
    if not _is_texts(given):
        kind = type(given).__name__
        raise ValueError(f"class_names must be a list of names; got the {kind} {given!r}")
    if not given:
        raise UserError("class_names is empty: give the names of one class or more")
    empty = [place for place, name in enumerate(given) if not words_of(name)]
    if empty:
        raise ValueError(f"class_names[{empty[0]}] is {given[empty[0]]!r}: give a name")


def _is_texts(given: object) -> TypeGuard[Sequence[str]]:
    """Whether ``given`` is a list of texts; a text is a sequence of texts too, its letters."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        return False
    return all(isinstance(text, str) for text in given)
