"""``@anchoropt``: register a Dassl trainer once more, with the two stages of AnchorOPT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from ..errors import UserError
from ..process.command_line import tell_uncaught_in_one_line
from .settings import AnchorOPTConfig
from .two_stages import SUFFIX, TwoStages

Trainer = TypeVar("Trainer", bound=type)


@overload
def anchoropt(
    trainer: Trainer,
    *,
    name: str | None = ...,
    learner: str = ...,
    node: str = ...,
    **settings: Any,
) -> Trainer: ...


@overload
def anchoropt(
    trainer: None = None,
    *,
    name: str | None = ...,
    learner: str = ...,
    node: str = ...,
    **settings: Any,
) -> Callable[[Trainer], Trainer]: ...


def anchoropt(
    trainer: Trainer | None = None,
    *,
    name: str | None = None,
    learner: str = "",
    node: str = "",
    **settings: Any,
) -> Trainer | Callable[[Trainer], Trainer]:
    """Register ``<Name>_AnchorOPT`` beside a Dassl trainer, and return the trainer untouched.

    From then on, a ``UserError`` that nobody catches ends a script with one line and status 2.

    Args:
        trainer: a trainer of the CoOp family: its ``build_model`` builds CLIP and a model whose
            prompt learner fits ``PromptHook``, and its loss goes through ``F.cross_entropy``.
        name: the new trainer's name, instead of ``<Name>_AnchorOPT``.
        learner: name of the prompt learner in the host's model; by default the first module that
            is a prompt learner.
        node: name of the host's node in ``cfg.TRAINER``; by default the host's attribute ``node``,
            or the host's name, in any case.
        settings: of ``AnchorOPTConfig``, in place of its defaults; keys given in a yaml file or on
            the command line win.

    Raises:
        UserError: a setting is unknown or wrong, or the name is taken.

    >>> from dassl.engine import TRAINER_REGISTRY, TrainerX
    >>> @anchoropt(position="gumbel")
    ... @TRAINER_REGISTRY.register()
    ... class MyPrompts(TrainerX):
    ...     pass
    >>> TRAINER_REGISTRY.get("MyPrompts_AnchorOPT").anchoropt_host is MyPrompts
    True
    """
    tell_uncaught_in_one_line()
    AnchorOPTConfig.with_arguments(settings)

    def register(host: Trainer) -> Trainer:
        from dassl.engine import TRAINER_REGISTRY

        namespace = {
            "__doc__": f"{host.__name__} with AnchorOPT: learned anchors and a position matrix.",
            "__module__": host.__module__,
            "anchoropt_host": host,
            "anchoropt_learner": learner,
            "anchoropt_node": node or getattr(host, "node", host.__name__.upper()),
            "anchoropt_arguments": settings,
        }
        own = name or host.__name__ + SUFFIX
        suffix = own.removeprefix(host.__name__)
        namespace["also_trained_by"] = [base.__name__ + suffix for base in host.__mro__]
        try:
            TRAINER_REGISTRY.register()(type(own, (TwoStages, host), namespace))
        except KeyError:
            raise UserError(
                f"the trainer {own} is registered already: {host.__name__} has @anchoropt twice, "
                "or another trainer has this name; remove one, or give @anchoropt another name "
                "(name=…)"
            ) from None
        return host

    return register if trainer is None else register(trainer)
