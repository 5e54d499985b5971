"""An experiment: methods under a protocol, and what its report says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .plan import Method
from .protocols import Protocol


@dataclass(frozen=True)
class Experiment:
    """Methods under a protocol, and what the report says of them.

    Attributes:
        title: of the report.
        about: a sentence or two below it.
    """

    title: str
    about: str
    protocol: Protocol
    methods: Sequence[Method]
