"""An experiment: methods under a protocol, with the texts of its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .plan import Job, Method
from .protocols import Protocol


@dataclass(frozen=True)
class Experiment:
    """Methods under a protocol.

    Attributes:
        title: the title of the report.
        about: one or two sentences below the title.
        protocol: the protocol.
        methods: the rows of the tables, in order.
        check: raises ``UserError`` if the plan must not be started.
    """

    title: str
    about: str
    protocol: Protocol
    methods: Sequence[Method]
    check: Callable[[Sequence[Job]], None] = lambda jobs: None
