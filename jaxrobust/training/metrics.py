"""What a training run tells: sums of the steps' metrics, and a progress bar."""

import collections
import math
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

# The host reads the metrics of a call this many calls late: by then they are there, and
# reading them does not make the device wait. It also bounds the queue of calls.
CALLS_IN_FLIGHT = 8


class EpochMeans:
    """Means of the steps' metrics since the epoch began, in float64 on the host.

    Attributes:
      sums: metric -> sum over the epoch's steps so far.
      count: steps so far.
      latest: the newest metrics that have been read.
    """

    def __init__(self, sums: dict[str, float] | None = None, count: int = 0):
        """Start from the sums and the count of an interrupted epoch."""
        self.sums = dict(sums or {})
        self.count = count
        self.latest: dict[str, float] = {}
        self._pending: collections.deque = collections.deque()

    def push(self, step: int, num_steps: int, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics `[>= num_steps]` of the steps from `step` on.

        They may still be being computed.
        """
        self._pending.append((step, num_steps, metrics))
        if len(self._pending) > CALLS_IN_FLIGHT:
            self._read(*self._pending.popleft())

    def drain(self) -> None:
        """Wait for all steps and reads their metrics."""
        while self._pending:
            self._read(*self._pending.popleft())

    def means(self) -> dict[str, float]:
        """Return train_NAME -> mean, and forgets the epoch."""
        self.drain()
        means = {f"train_{name}": s / self.count for name, s in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def _read(self, step: int, num_steps: int, metrics: dict[str, Any]) -> None:
        arrays = jax.device_get(metrics)
        for i in range(num_steps):
            self._add(step + i, {name: float(a[i]) for name, a in arrays.items()})

    def _add(self, step: int, metrics: dict[str, float]) -> None:
        self.latest = metrics
        for name in ("loss", "grad_norm"):
            if not math.isfinite(self.latest[name]):
                raise FloatingPointError(
                    f"training diverged: {name} is {self.latest[name]} at step {step}. "
                    "Use a smaller learning rate, a warm-up or "
                    "optax.clip_by_global_norm; start again in an empty `out` or with "
                    "resume=False."
                )
        for name, value in self.latest.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1


class ProgressBar:
    """A bar with loss, accuracy and time left; silent where there is no terminal."""

    def __init__(self, total: int, completed: int, *, is_shown: bool):
        """Prepare a bar of `total` steps, of which `completed` are done."""
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (is_shown and console.is_terminal),
        )
        self._task = self._bar.add_task(
            "", total=total, completed=completed, epoch="", text=""
        )

    def update(self, step: int, epoch: str, latest: dict[str, float]) -> None:
        """Show the number of steps done and the newest metrics."""
        shown = [f"{n} {latest[n]:.3f}" for n in ("loss", "accuracy") if n in latest]
        self._bar.update(self._task, completed=step, epoch=epoch, text="  ".join(shown))

    def __enter__(self) -> "ProgressBar":
        """Start the display."""
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """End the display."""
        self._bar.stop()
