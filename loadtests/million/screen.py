"""What a person sees of a run: its progress, its figures, and the promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from loadtests.million.promise import Part

LINE_EVERY_S = 5.0


class Screen:
    """Shows progress as bars on a terminal, and as a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description:<11}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=1, note="")
        self._what = ""
        self._said_s = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        self._progress.console.print(text, highlight=False)

    def begin(self, what: str, total: int) -> None:
        """Begin a bar."""
        self._what = what
        self._said_s = 0.0
        self._task = self._progress.add_task(what, total=total, note="")

    def update(self, completed: int, total: int, note: str, now_s: float) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=completed, total=total, note=note)
        done = completed >= total
        if self._progress.disable and (now_s - self._said_s >= LINE_EVERY_S or done):
            self._said_s = now_s
            self.say(f"{self._what:<11} {completed:,}/{total:,}  {note}")


def figures_table(figures: Mapping[str, Any]) -> Table:
    """Return the figures as a table."""
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0))
    for section, values in figures.items():
        if not isinstance(values, Mapping):
            continue
        text = "  ".join(f"{name} {_text(value)}" for name, value in values.items())
        table.add_row(section.replace("_", " "), text)
    return table


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def promise_table(parts: Sequence[Part]) -> Table:
    """Return the promise as a table."""
    table = Table(title="The promise", box=None, show_header=False, title_justify="left")
    for part in parts:
        table.add_row("[green]kept[/]" if part.kept else "[red]BROKEN[/]", part.what, part.why)
    return table
