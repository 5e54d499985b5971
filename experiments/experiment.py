"""An experiment: methods under a protocol, with the texts of its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .plan import Method
from .protocols import Protocol


@dataclass(frozen=True)
class Experiment:
    """Methods under a protocol.

    Attributes:
        title: the title of the report.
        about: one or two sentences below the title.
        protocol: the protocol.
        methods: the rows of the tables, in order.
    """

    title: str
    about: str
    protocol: Protocol
    methods: Sequence[Method]
