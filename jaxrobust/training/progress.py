"""What is shown while `fit` works: a bar on a terminal, and a line for each epoch."""

import datetime
import time
from collections.abc import Mapping
from typing import Any

from jaxrobust._core.progress import ProgressDisplay
from jaxrobust.training.monitor import Check

# What the line of an epoch shows: name in the history, name on the line.
_SHOWN = {
    "train_loss": "loss",
    "train_accuracy": "accuracy",
    "val_clean": "val_clean",
    "val_robust": "val_robust",
}


class ProgressBar(ProgressDisplay):
    """A bar with loss, accuracy and time left on a terminal, and a line for each epoch.

    The lines stay, the bar goes when it has ended.
    """

    def __init__(self, total: int | None, completed: int, *, is_shown: bool):
        """Prepare a bar of `total` steps, if known, of which `completed` are done."""
        super().__init__(is_shown=is_shown, stays=False)
        self._task = self._bar.add_task(
            "training", total=total, completed=completed, text=""
        )
        self._total, self._completed = total, completed
        self._begin = time.monotonic()

    def know(self, total: int | None) -> None:
        """Take the number of steps, which the first epoch may have told."""
        if total != self._total:
            self._total = total
            self._bar.update(self._task, total=total)

    def update(self, step: int, epoch: str, latest: Mapping[str, float]) -> None:
        """Show the number of steps done and the newest metrics."""
        shown = [f"{n} {latest[n]:.3f}" for n in ("loss", "accuracy") if n in latest]
        self._bar.update(
            self._task,
            completed=step,
            description=f"training  epoch {epoch}",
            text="  ".join(shown),
        )

    def end_epoch(self, line: Mapping[str, Any], num_epochs: int) -> None:
        """Print the line of an epoch, given its entry in the history."""
        texts = [f"epoch {line['epoch']}/{num_epochs}"]
        texts += [f"{s} {line[n]:.4f}" for n, s in _SHOWN.items() if n in line]
        texts += [f"{line['seconds']:.1f} s", f"{self._time_left(line['step'])} left"]
        self._say("  ".join(texts))

    def say_collapsed(self, step: int, check: Check, back: int | None) -> None:
        """Print the line of a collapse, and the step that training goes back to."""
        texts = [f"collapsed at step {step}"]
        texts += [f"{n} {value:.4f}" for n, value in check._asdict().items()]
        texts += [] if back is None else [f"back to step {back}"]
        self._say("  ".join(texts))

    def _time_left(self, step: int) -> str:
        """Return the time for the steps to come, at the pace of this session."""
        assert self._total is not None  # an epoch is over
        pace = (time.monotonic() - self._begin) / max(step - self._completed, 1)
        return str(datetime.timedelta(seconds=round(pace * (self._total - step))))
