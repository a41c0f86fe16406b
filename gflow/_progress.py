"""A progress line for long runs, in a terminal or a notebook."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Any


class Progress:
    """Shows how far a run is; does nothing unless asked to.

    Parameters
    ----------
    shown : bool
        Whether to draw at all.
    description : str
        What is running.
    total : float
        The value of ``done`` at the end; infinite if it is not known.
    """

    def __init__(self, shown: bool, description: str, total: float) -> None:
        self._display: Any = None
        if not shown:
            return
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Display

        self._display = Display(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"), transient=False,
        )  # fmt: skip
        self._task = self._display.add_task(
            description, total=total if math.isfinite(total) else None, note=""
        )

    def __enter__(self) -> Progress:
        if self._display is not None:
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.stop()

    def update(self, done: float, note: str = "") -> None:
        """Show that ``done`` of the total is reached, with a few words."""
        if self._display is not None:
            self._display.update(self._task, completed=done, note=note)
