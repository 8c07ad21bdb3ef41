"""A bar on a terminal, and lines on stderr; stdout is the user's."""

import sys
from typing import Any, Self

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

# Name, bar, numbers, text and time share the 80 columns of a terminal.
_BAR_WIDTH = 12


class ProgressDisplay:
    """Where there is no terminal there are the lines alone; process 0 alone speaks.

    A context manager: inside, the bars move.
    """

    def __init__(self, *, is_shown: bool, stays: bool):
        """Prepare; whether the bars stay when all is over."""
        # Names hold brackets, which are not markup.
        self._console = Console(stderr=True, markup=False, highlight=False)
        self._is_shown = is_shown and jax.process_index() == 0
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=_BAR_WIDTH),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
            transient=not stays,
            disable=not (self._is_shown and self._console.is_terminal),
        )

    def _say(self, line: str) -> None:
        """Print a line, above the bars where there are any."""
        if not self._is_shown:
            return
        if self._bar.disable:
            print(line, file=sys.stderr, flush=True)
        else:
            self._console.print(line)

    def __enter__(self) -> Self:
        """Start the display."""
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """End the display."""
        self._bar.stop()
