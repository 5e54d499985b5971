"""An experiment: methods under a protocol, with the texts of its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from .plan import Job, Method
from .protocols import Protocol

MoreRows = Callable[[Sequence[Job], pd.DataFrame], pd.DataFrame]
"""Computes rows of results from the jobs and the rows of their runs."""


@dataclass(frozen=True)
class Experiment:
    """Methods under a protocol.

    Attributes:
        title: the title of the report.
        about: one or two sentences below the title.
        protocol: the protocol.
        methods: the rows of the tables, in order.
        computed: the rows below them, by name: computed from the runs of other rows.
        check: raises ``UserError`` if the plan must not be started.
    """

    title: str
    about: str
    protocol: Protocol
    methods: Sequence[Method]
    computed: Mapping[str, MoreRows] = field(default_factory=dict, kw_only=True)
    check: Callable[[Sequence[Job]], None] = lambda jobs: None
