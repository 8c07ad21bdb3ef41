"""The bar of an evaluation: what is decided, what can still be robust, time left."""

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from jaxrobust.evaluation.intervals import wilson


class ProgressBar:
    """One bar for each attack; silent where there is no terminal."""

    def __init__(self, *, is_shown: bool):
        """Prepare; nothing is shown before the first stage."""
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (is_shown and console.is_terminal),
        )
        self._task: Any = None

    def stage(self, name: str, num_items: int) -> None:
        """Begin the bar of an attack that may take so many runs on single examples."""
        self._task = self._bar.add_task(name, total=num_items, text="")

    def update(self, done: int, num_robust: int, num_examples: int) -> None:
        """Show how many runs are over or not needed, and the bound that follows."""
        low, high = wilson(num_robust, num_examples)
        bound = 100 * num_robust / num_examples
        text = f"robust <= {bound:.2f}% [{100 * low:.2f}, {100 * high:.2f}]"
        self._bar.update(self._task, completed=done, text=text)

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
