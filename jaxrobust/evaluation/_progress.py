"""What an evaluation tells on the way: a bar on a terminal, a line per attack in a file."""

import sys
import time
from typing import Any

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

# Name, bar, numbers, bound and time share the 80 columns of a terminal.
_NAME_WIDTH = 22
_BAR_WIDTH = 12


class ProgressBar:
    """One bar for each attack on a terminal; elsewhere a line when the attack is over.

    Both go to stderr. A notebook shows neither: its cells are kept with their outputs.
    """

    def __init__(self, *, is_shown: bool):
        """Prepare; nothing is shown before the first stage."""
        console = Console(stderr=True)
        is_shown = is_shown and jax.process_index() == 0
        self._has_lines = is_shown and not (console.is_terminal or console.is_jupyter)
        self._bar = Progress(
            # Names hold brackets, which are not markup.
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=_BAR_WIDTH),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not (is_shown and console.is_terminal),
        )
        self._task: Any = None
        self._name, self._total, self._begin = "", 0, 0.0

    def stage(self, name: str, num_items: int) -> None:
        """Begin the bar of an attack that may take so many runs on single examples."""
        self._name, self._total, self._begin = name, num_items, time.monotonic()
        is_long = len(name) > _NAME_WIDTH
        shown = f"{name[: _NAME_WIDTH - 1]}…" if is_long else f"{name:<{_NAME_WIDTH}}"
        self._task = self._bar.add_task(shown, total=num_items, text="")

    def update(self, done: int, num_robust: int, num_examples: int) -> None:
        """Show how many runs are over or not needed, and the bound that follows."""
        text = f"robust <= {100 * num_robust / num_examples:.2f}%"
        self._bar.update(self._task, completed=done, text=text)

    def end_stage(self, num_robust: int, num_examples: int) -> None:
        """Fill the bar of the attack that is over, or print its line."""
        self.update(self._total, num_robust, num_examples)
        if self._has_lines:
            print(
                f"{self._name}: {100 * num_robust / num_examples:.2f}% robust so far, "
                f"{num_robust:,} of {num_examples:,} examples left, "
                f"{time.monotonic() - self._begin:.1f} s",
                file=sys.stderr,
                flush=True,
            )

    def advance(self, count: int) -> None:
        """Show that so many runs more are over; nothing is known of the bound."""
        self._bar.advance(self._task, count)

    def __enter__(self) -> "ProgressBar":
        """Start the display."""
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """End the display."""
        self._bar.stop()
