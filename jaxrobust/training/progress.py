"""What is shown while `fit` works: a bar on a terminal, and a line for each epoch."""

import datetime
import sys
import time
from collections.abc import Mapping
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

# What the line of an epoch shows: name in the history, name on the line.
_SHOWN = {
    "train_loss": "loss",
    "train_accuracy": "accuracy",
    "val_clean": "val_clean",
    "val_robust": "val_robust",
}


class ProgressBar:
    """A bar with loss, accuracy and time left on a terminal, and a line for each epoch.

    Both go to stderr. Where that is a file or a notebook there are the lines alone. Of
    several processes the first one speaks.
    """

    def __init__(self, total: int, completed: int, *, is_shown: bool):
        """Prepare a bar of `total` steps, of which `completed` are done."""
        console = Console(stderr=True, markup=False, highlight=False)
        self._is_shown = is_shown and jax.process_index() == 0
        # The lines stay, the bar goes when it has ended.
        self._bar = Progress(
            TextColumn("training  epoch {task.fields[epoch]}", markup=False),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (self._is_shown and console.is_terminal),
        )
        self._task = self._bar.add_task(
            "", total=total, completed=completed, epoch="", text=""
        )
        self._total, self._completed = total, completed
        self._begin = time.monotonic()

    def update(self, step: int, epoch: str, latest: Mapping[str, float]) -> None:
        """Show the number of steps done and the newest metrics."""
        shown = [f"{n} {latest[n]:.3f}" for n in ("loss", "accuracy") if n in latest]
        self._bar.update(self._task, completed=step, epoch=epoch, text="  ".join(shown))

    def end_epoch(self, line: Mapping[str, Any], num_epochs: int) -> None:
        """Print the line of an epoch, given its entry in the history."""
        if not self._is_shown:
            return
        texts = [f"epoch {line['epoch']}/{num_epochs}"]
        texts += [f"{s} {line[n]:.4f}" for n, s in _SHOWN.items() if n in line]
        texts += [f"{line['seconds']:.1f} s", f"{self._time_left(line['step'])} left"]
        text = "  ".join(texts)
        if self._bar.disable:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(text)

    def _time_left(self, step: int) -> str:
        """Return the time for the steps to come, at the pace of this session."""
        pace = (time.monotonic() - self._begin) / max(step - self._completed, 1)
        return str(datetime.timedelta(seconds=round(pace * (self._total - step))))

    def __enter__(self) -> "ProgressBar":
        """Start the display."""
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """End the display."""
        self._bar.stop()
