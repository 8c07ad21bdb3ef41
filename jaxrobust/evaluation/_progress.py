"""What an evaluation tells on the way: a bar on a terminal, a line per attack in a file."""

import time
from typing import Any

from jaxrobust._core.progress import ProgressDisplay
from jaxrobust.attacks.cost import Cost

_NAME_WIDTH = 22

# What takes less is over before one has read how long it will take.
_WORTH_SAYING = 60.0
# So long is measured.
_MEASURED = 5.0


def _passes(cost: Cost) -> int:
    return 3 * cost.gradients + cost.forwards


def _text(seconds: float) -> str:
    is_long = seconds >= 2 * 3600
    return f"{seconds / 3600:.1f} h" if is_long else f"{seconds / 60:.0f} min"


class ProgressBar(ProgressDisplay):
    """One bar for each attack on a terminal; elsewhere a line when the attack is over.

    A notebook shows neither: its cells are kept with their outputs.
    """

    def __init__(self, *, is_shown: bool):
        """Prepare; nothing is shown before the first stage."""
        super().__init__(is_shown=is_shown, stays=True)
        self._task: Any = None
        self._name, self._total, self._begin = "", 0, 0.0
        self._most: Cost | None = None
        self._first: tuple[float, float] | None = None

    def expect(self, most: Cost | None) -> None:
        """Take note of what all attacks take if nothing breaks; None where unknown."""
        self._most = most

    def measure(self, spent: Cost) -> None:
        """Say once how long the rest takes at most, by the time since the first call.

        That one has been compiled; a gradient counts as three forward passes, as it is
        a forward and a backward pass, which is twice as long.
        """
        now, done = time.monotonic(), _passes(spent)
        if self._most is None:
            return
        if self._first is None:
            self._first = now, done
            return
        seconds, passes = now - self._first[0], done - self._first[1]
        if seconds < _MEASURED or not passes:
            return
        left = (_passes(self._most) - done) * seconds / passes
        if left > _WORTH_SAYING and not self._console.is_jupyter:
            self._say(
                f"at most {self._most.gradients:,} gradients and {self._most.forwards:,} "
                f"forwards in all, {_text(left)} more at this speed"
            )
        self._most = None

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
        if not (self._console.is_terminal or self._console.is_jupyter):
            self._say(
                f"{self._name}: {100 * num_robust / num_examples:.2f}% robust so far, "
                f"{num_robust:,} of {num_examples:,} examples left, "
                f"{time.monotonic() - self._begin:.1f} s"
            )

    def advance(self, count: int) -> None:
        """Show that so many runs more are over; nothing is known of the bound."""
        self._bar.advance(self._task, count)
