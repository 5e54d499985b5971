"""The command ``check``: its arguments, the trial and the printed report."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from ...encoders.fast_forward import FastForward
from ...errors import UserError
from ...prompts.attachment import attached
from ...prompts.hooks import hook_for
from .cpu_for_gpu import CpuForGpu
from .independent import Differences, compare, record_steps
from .probes import SeenLoss, TextCalls, gain_of, record_losses
from .random_clip import LAYERS, random_clip
from .reload import Loads, loads_again, save
from .small_trainer import (
    BATCH,
    CLASSES,
    OTHER_CLASSES,
    HostError,
    build,
    find_trainer,
    host_errors,
    learners_of,
    logits_at_test,
    modules_of,
    own_keys,
    quiet,
    take_step,
    trained_by,
    trial_cfg,
)

HELP = "check that a trainer works with AnchorOPT"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add = parser.add_argument
    add("trainer", metavar="MODULE:TRAINER", help="such as trainers.coop:CoOp")
    add("--config-file", metavar="FILE", help="yaml file of the method")
    add("--classes", nargs="+", metavar="NAME", help="class names (default: some of Caltech101)")
    add("--learner", default="", help="attribute name of the prompt learner (default: searched)")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys and values")


def run(args: argparse.Namespace) -> int:
    """Try the trainer and print a report.

    Raises:
        UserError: a trainer that does not work; the message says what is missing and what to do.
    """
    late = [word for word in args.opts if word.startswith("--")]
    if late:
        raise UserError(f"{late[0]} comes after {args.trainer}: give flags before MODULE:TRAINER")
    keys = own_keys()  # first: a train.py may register trainers named X_AnchorOPT
    host, with_anchoropt = find_trainer(args.trainer, args.learner)
    gpu = contextlib.nullcontext() if torch.cuda.is_available() else CpuForGpu()
    with tempfile.TemporaryDirectory() as folder, random_clip() as weights, _only_errors(), gpu:
        # A GPU runs the host as its users do, in its default precision; on a CPU half precision
        # is slow or missing. Some hosts work only in one precision.
        first, second = (None, "fp32") if torch.cuda.is_available() else ("fp32", None)
        given = host, keys, Path(folder), args.config_file, args.opts
        try:
            found = _trial(host, with_anchoropt, trial_cfg(*given, first), args.classes, weights)
        except HostError as error:
            try:
                with quiet():
                    cfg = trial_cfg(*given, second)
                found = _trial(host, with_anchoropt, cfg, args.classes, weights)
            except HostError as other:
                # Many hosts fail in another precision than their own, which hides the true cause.
                raise (error if first is None else other) from None
        _report(host.__name__, found)
    return 0


@contextlib.contextmanager
def _only_errors() -> Iterator[None]:
    """Silence the plug-in's warnings: the report has the same facts."""
    log = logging.getLogger("anchoropt_plugin")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


class Found(NamedTuple):
    """The result of a trial.

    Attributes:
        trainer: with AnchorOPT, after a step.
        losses: of the step.
        calls: of the text encoders.
        differences: from the objective in float64; None if the hook has plain features of its own.
        loads: which checkpoints load.
    """

    trainer: Any
    losses: list[SeenLoss]
    calls: TextCalls
    differences: Differences | None
    loads: Loads


def _trial(
    host: type, with_anchoropt: type, cfg: Any, given: Sequence[str] | None, weights: Path
) -> Found:
    """Build the host trainer, plain and with AnchorOPT, and let both take a step.

    Args:
        host: the trainer alone.
        with_anchoropt: the trainer with AnchorOPT.
        cfg: of the trial.
        given: class names, or None.
        weights: the folder of the random CLIPs.
    """
    name = host.__name__
    trained, others = (given, given[len(given) // 2 :]) if given else (CLASSES, OTHER_CLASSES)
    give = (
        "this may be due to the stand-ins: give the missing keys as KEY VALUE or with "
        "--config-file, another MODEL.BACKBONE.NAME, or class names that the trainer knows "
        "(--classes, with DATASET.NAME)"
    )
    stand_ins = f"{name} without AnchorOPT fails on the random CLIP and images of `check`: "
    _tell(f"{name} without AnchorOPT")
    with host_errors(stand_ins, give):
        alone = build(host, cfg, trained)
        learners = learners_of(alone)
        if learners:
            take_step(alone)
            logits_at_test(alone)
    if not modules_of(alone):
        raise UserError(
            f"{name} has no model after __init__: AnchorOPT watches build_model, which Dassl's "
            "__init__ calls"
        )
    if not learners:
        raise UserError(
            f"{name} has no prompt learner: AnchorOPT needs a module with the tensors "
            "token_prefix, token_suffix and tokenized_prompts, like CoOp's prompt learner, or "
            "a PromptHook for the learner (register_hook)"
        )
    with host_errors(f"{name} works, but not with AnchorOPT: ", "please report this error"):
        _tell("with AnchorOPT: stage 1, a step of stage 2, a test")
        trainer = build(with_anchoropt, cfg, trained)
        with record_steps(trainer.anchoropt) as steps:
            losses, calls = _step(name, trainer)
        _tell("the objective in float64")
        differences = compare(trainer.anchoropt, steps, sorted(weights.iterdir()))
        _tell("checkpoints")
        folder = Path(cfg.OUTPUT_DIR)
        checkpoints = save(alone, folder / "alone"), save(trainer, folder / "ours")
        loads = loads_again(host, with_anchoropt, *checkpoints, cfg, trained, others)
    return Found(trainer, losses, calls, differences, loads)


def _tell(part: str) -> None:
    """Tell someone who waits at a terminal which part of the check runs."""
    if sys.stderr.isatty():
        print(f"check: {part} …", file=sys.stderr)


def _step(name: str, trainer: Any) -> tuple[list[SeenLoss], TextCalls]:
    """Run stage 1, a step of stage 2 and a test, as in a real run."""
    calls = TextCalls([forward.encoder for forward in _fast_forwards(trainer)])
    with quiet():
        trainer.anchoropt_stage_one()
    with record_losses() as losses:
        take_step(trainer)
    position = trainer.anchoropt.position
    if not any(parameter is position.logits for parameter in trained_by(trainer).values()):
        raise UserError(
            f"{name} does not train the parameters added to its prompt learner: give all "
            "parameters of the learner to the optimiser, and leave requires_grad of those with "
            "'prompt_learner' in their name"
        )
    logits = logits_at_test(trainer)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != _shape_of_logits(trainer):
        raise UserError(
            f"in a test, {name} gives its evaluator {shape}, but must give the logits "
            "(images, classes)"
        )
    calls.stop()
    return losses, calls


def _shape_of_logits(trainer: Any) -> tuple[int, int]:
    return BATCH, trainer.num_classes


def _fast_forwards(trainer: Any) -> list[FastForward]:
    forwards = [module.__dict__.get("forward") for module in modules_of(trainer).values()]
    return list(dict.fromkeys(x for x in forwards if isinstance(x, FastForward)))


# ---------------------------------------------------------------------- the printed report
def _report(name: str, found: Found) -> None:
    trainer, losses, calls, differences, loads = found
    console = Console()
    console = Console(width=console.width if console.is_terminal else 120, highlight=False)
    learners = {n: module for n, module in learners_of(trainer).items() if attached(module)}
    table = Table.grid(padding=(0, 2))
    but = f", except for tests on other classes: {escape(loads.fault)}" if loads.fault else ""
    console.print(f"[bold]{name} works with AnchorOPT[/bold]{but}")
    for path, learner in learners.items():
        hook, kind = hook_for(learner), type(learner).__name__
        size = f"{hook.n_ctx(learner)} soft tokens of width {hook.dim(learner)}"
        table.add_row("learner", f"{path} ({kind}): {size}, read by {type(hook).__name__}")
    table.add_row("deep prompts", _deep_prompts(trainer))
    used = next(x for x in losses if x.shape == _shape_of_logits(trainer))
    table.add_row("loss", f"F.cross_entropy at {used.place}, over logits {used.shape}")
    others = [x for x in losses if x is not used]
    if others:
        table.add_row("", f"{len(others)} more stay unchanged: {others[0].place}")
    table.add_row("objective", _objective(differences))
    anchors = trainer.anchoropt.position.anchors
    table.add_row("stage 1 learns", f"{len(anchors)} anchor token of width {anchors.shape[1]}")
    trained = trained_by(trainer)
    total = sum(parameter.numel() for parameter in trained.values())
    table.add_row("stage 2 trains", f"{total:,} numbers in {len(trained)} tensors")
    for path, parameter in trained.items():
        table.add_row("", f"{path} {tuple(parameter.shape)}")
    table.add_row("checkpoints load", escape(loads.text))
    table.add_row("fast text branch", "\n".join(_fast_branch(trainer, calls)))
    console.print(table)


def _objective(differences: Differences | None) -> str:
    if differences is None:
        return "not compared with float64: the hook gives plain image features of its own"
    return (
        f"as computed apart in float64: image features to {differences.features:.0e}, "
        f"loss to {differences.loss:.0e}, gradient of the logits to {differences.gradient:.0e}"
    )


def _deep_prompts(trainer: Any) -> str:
    found = [deep for forward in _fast_forwards(trainer) for deep in forward.deep_prompts]
    if not found:
        return "none"
    first = found[0]
    source = "a list among the text encoder's arguments"
    if isinstance(first.source, str):
        source = f"its own parameters, such as {first.source}"
    blocks = ", ".join(str(deep.block) for deep in found)
    return f"before text blocks {blocks} of {LAYERS}, from {source}"


def _fast_branch(trainer: Any, calls: TextCalls) -> list[str]:
    lines = []
    for forward in _fast_forwards(trainer):
        kind = type(forward.encoder).__name__
        if not forward.in_use or forward.error is None or forward.encoder not in calls.given:
            why = "" if forward.error is None else f": its features differ by {forward.error:.0e}"
            lines.append(f"not used: {kind} keeps its own forward{why}")
            continue
        given = calls.given[forward.encoder]
        lines.append(f"replaces {kind}, relative error {forward.error:.0e}")
        if given[0].dtype == torch.float16 and not given[0].is_cuda:
            lines.append("time and memory not measured: CPUs have no half precision of their own")
            continue
        gain = gain_of(forward, given)
        lines.append(
            f"{gain.tokens[0]:,} → {gain.tokens[1]:,} tokens, "
            f"{gain.seconds[0] / gain.seconds[1]:.1f} times faster, "
            f"{gain.memory[0] / gain.memory[1]:.1f} times less memory "
            f"(one run, {trainer.num_classes} classes, {LAYERS} layers)"
        )
    return lines or ["none: no text encoder was found"]
