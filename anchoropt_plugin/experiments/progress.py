"""Progress of an experiment on the terminal, and its failures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from .execution import Event


def follow(events: Iterable[Event], total: int, console: Console) -> list[Event]:
    """Show a bar for all ``total`` runs and one for each started run; return the failures."""
    failed: list[Event] = []
    bars: dict[Path, TaskID] = {}
    folded = Column(no_wrap=False)  # in a narrow terminal names are folded, not the times
    text = TextColumn("{task.description}", table_column=folded)
    times = TimeElapsedColumn(), TextColumn("so far,"), TimeRemainingColumn(), TextColumn("left")
    columns = text, BarColumn(bar_width=12), MofNCompleteColumn()
    with Progress(*columns, *times, console=console, refresh_per_second=4) as progress:
        everything = progress.add_task("[bold]all runs", total=total)
        for event in events:
            name = escape(str(event.run))
            if event.kind == "started":  # a requeued job of Slurm starts its run again
                if event.run.folder not in bars:
                    bars[event.run.folder] = progress.add_task(name, total=None)
            elif event.kind == "at":
                progress.update(bars[event.run.folder], completed=event.epoch, total=event.epochs)
            else:
                if event.run.folder in bars:
                    progress.remove_task(bars.pop(event.run.folder))
                progress.advance(everything)
                if event.kind == "failed":
                    failed.append(event)
                    progress.console.print(f"[red]failed[/red] {name}: {escape(event.error)}")
                elif not console.is_terminal:
                    progress.console.print(f"finished {name}")
    return failed


def print_failures(failed: Iterable[Event], console: Console) -> None:
    """Print a line for each failed run: the reason, and the path of its log."""
    for event in failed:
        console.print(f"failed: {escape(event.failure)}", soft_wrap=True)
