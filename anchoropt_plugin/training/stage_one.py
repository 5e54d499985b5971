"""Stage 1 in a run: load, make, look up or learn the anchor tokens, as the settings say."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

from ..encoders.clip_models import warn_of_unknown_words
from ..encoders.text_tower import TextTower
from ..errors import UserError
from ..method import descriptions
from ..method.anchor_learning import ImageBatches, LossNotFiniteError
from ..method.anchors import AnchorTokens
from ..process import distributed
from . import anchor_cache
from .released_files import anchors_file
from .settings import LEARNED, RANDOM, AnchorOPTConfig

OnLoss = Callable[[int, float], None]
"""Takes an epoch of stage 1 (from 0) and its loss."""


def find_anchors(
    settings: AnchorOPTConfig,
    tower: TextTower,
    class_names: Sequence[str],
    steps: int,
    images: ImageBatches,
    before: Callable[[], None],
    on_loss: OnLoss,
    data_set: str = "",
) -> AnchorTokens:
    """Return the anchor tokens (K, d) that a run trains with in stage 2.

    Args:
        settings: say where the anchors come from, and how they are learned.
        tower: of the plain CLIP.
        class_names: C names.
        steps: steps an epoch.
        images: one epoch of image features and labels; read only if ANCHOR_CE_WEIGHT asks.
        before: called before anchors are learned.
        on_loss: called after each epoch if anchors are learned.
        data_set: its name, if ANCHOR_WEIGHTS is a folder of anchors of several data sets.

    Raises:
        UserError: a file cannot be read, words do not fit ANCHOR_LEN, or the loss is not finite.
    """
    if settings.anchor_weights:
        anchors = _loaded(settings, tower, data_set)
        print(f"Stage 1: anchors loaded from {anchors_file(settings.anchor_weights, data_set)}")
    elif settings.anchor != LEARNED:
        anchors = _made(settings, tower)
        print(f"Stage 1: skipped, the anchors are {settings.anchor}")
    else:
        return _cached_or_learned(settings, tower, class_names, steps, images, before, on_loss)
    if settings.descriptions:
        print("Note: TRAINER.ANCHOROPT.DESCRIPTIONS is not read, as the anchors are not learned")
    return anchors


def read_sources(
    settings: AnchorOPTConfig, tower: TextTower, class_names: Sequence[str], data_set: str = ""
) -> str:
    """Return a digest of the file of anchors or of descriptions of a run, before it starts.

    It is empty for a run without such a file.

    Raises:
        UserError: they cannot be read, or do not fit the classes, ANCHOR_LEN or the backbone.
    """
    content: object = None
    if settings.anchor_weights:
        content = _loaded(settings, tower, data_set).values.tolist()
    elif settings.anchor == LEARNED:
        if settings.descriptions:
            content = _descriptions(settings, class_names)
    elif settings.anchor != RANDOM:
        _made(settings, tower)
    if content is None:
        return ""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def seconds_of_stage_one(
    settings: AnchorOPTConfig,
    tower: TextTower,
    class_names: Sequence[str],
    steps: int,
    images: ImageBatches,
) -> float:
    """Return the seconds that :func:`find_anchors` will take, by timing one and two epochs.

    They are 0 if the anchors are cached, or need not be learned.
    """
    if settings.anchor_weights or settings.anchor != LEARNED:
        return 0.0
    texts, stage = _descriptions(settings, class_names), settings.stage_one(steps)
    if not settings.anchor_ce_weight:
        key = anchor_cache.content_key(tower, class_names, texts, stage)
        folder = anchor_cache.cache_folder(settings.anchor_cache)
        if anchor_cache.get(folder, key, (stage.length, tower.dim)) is not None:
            return 0.0
    seconds = []
    for epochs in (1, 2):
        started = time.time()
        AnchorTokens.learn(tower, class_names, texts, replace(stage, epochs=epochs), images=images)
        seconds.append(time.time() - started)
    first, both = seconds
    return first + (stage.epochs - 1) * max(0.0, both - first)


def _loaded(settings: AnchorOPTConfig, tower: TextTower, data_set: str) -> AnchorTokens:
    file = anchors_file(settings.anchor_weights, data_set)
    anchors = AnchorTokens.load(file)
    found, wanted = tuple(anchors.values.shape), (settings.anchor_len, tower.dim)
    if found != wanted:
        raise UserError(
            f"the anchors in {file} are {found}, this run needs {wanted}: they were learned with "
            "another ANCHOR_LEN or on another backbone"
        )
    return anchors


def _made(settings: AnchorOPTConfig, tower: TextTower) -> AnchorTokens:
    if settings.anchor == RANDOM:
        return AnchorTokens.random(tower, settings.anchor_len)
    try:
        return AnchorTokens.of_words(tower, settings.anchor, settings.anchor_len)
    except UserError as error:
        raise UserError(f"TRAINER.ANCHOROPT.ANCHOR and ANCHOR_LEN: {error}") from error


def _cached_or_learned(
    settings: AnchorOPTConfig,
    tower: TextTower,
    class_names: Sequence[str],
    steps: int,
    images: ImageBatches,
    before: Callable[[], None],
    on_loss: OnLoss,
) -> AnchorTokens:
    texts = _descriptions(settings, class_names)
    if settings.descriptions:
        warn_of_unknown_words(tower.clip, list(chain.from_iterable(texts)), "descriptions")
    stage = settings.stage_one(steps)
    # Anchors learned from images depend on the seed, too, and are not shared.
    share = not settings.anchor_ce_weight
    folder = anchor_cache.cache_folder(settings.anchor_cache)
    key = anchor_cache.content_key(tower, class_names, texts, stage)
    anchors = anchor_cache.get(folder, key, (stage.length, tower.dim)) if share else None
    # One process may look after another has cached them.
    anchors = distributed.from_main(anchors)
    if anchors is not None:
        print(f"Stage 1: cached anchors from {folder} (key {key})")
        return anchors
    print(
        f"Stage 1: learning {stage.length} anchor token(s) from the descriptions of "
        f"{len(class_names)} classes"
    )
    before()
    every = max(1, stage.epochs // 10)

    def report(epoch: int, loss: float) -> None:
        on_loss(epoch, loss)
        if (epoch + 1) % every == 0 or epoch + 1 == stage.epochs:
            rate = stage.lr_at(epoch)
            print(f"stage 1 epoch [{epoch + 1}/{stage.epochs}] loss {loss:.6f} lr {rate:.4e}")

    try:
        anchors = AnchorTokens.learn(
            tower, class_names, texts, stage, images=images, on_epoch=report
        )
    except LossNotFiniteError as error:
        keys = "TRAINER.ANCHOROPT.ANCHOR_LR, ANCHOR_MSE_WEIGHT"
        raise UserError(f"{error} ({keys})") from error
    if share:
        anchors.key = key
        anchor_cache.put(anchors, folder)
    return anchors


def _descriptions(settings: AnchorOPTConfig, class_names: Sequence[str]) -> list[list[str]]:
    limit = settings.max_template_length
    if not settings.descriptions:
        print("Stage 1: no TRAINER.ANCHOROPT.DESCRIPTIONS given, templates are used instead")
        return descriptions.from_templates(class_names, limit)
    try:
        return descriptions.read(settings.descriptions, class_names, limit)
    except UserError as error:
        raise UserError(f"TRAINER.ANCHOROPT.DESCRIPTIONS: {error}") from error
