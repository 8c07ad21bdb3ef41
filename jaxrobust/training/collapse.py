"""The monitor at work: what it attacks, what it says, and how it sets a run back."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust._core import checks as _host_checks
from jaxrobust._core.representation import text
from jaxrobust.training.monitor import Check, CollapseWarning, Monitor
from jaxrobust.training.progress import ProgressBar
from jaxrobust.training.running import Run
from jaxrobust.training.step import Views, Weights
from jaxrobust.training.validation import Scores


class Watch:
    """Looks at a run every so many steps, on the same examples with the same draws."""

    def __init__(
        self,
        monitor: Monitor,
        views: Views,
        data: tuple[jax.Array, jax.Array],
        *,
        threat: Any,
        key: jax.Array,
        **options: Any,
    ):
        """Take the first of the examples; compile nothing yet."""
        x, y = (array[: monitor.num_examples] for array in data)
        self.monitor = monitor
        self._scores = {
            name: Scores(
                views, (x, y), attack=attack, threat=threat, key=key, **options
            )
            for name, attack in (("fast", monitor.fast), ("strong", monitor.attack))
        }
        # What the best constant reaches on these very examples.
        self._chance = float(jnp.bincount(y).max()) / len(y)

    def programs(self, weights: Weights) -> dict[str, tuple]:
        """Return the functions that score, and their arguments."""
        return {f"monitor ({n})": s.program(weights) for n, s in self._scores.items()}

    def begin(self, run: Run) -> None:
        """Keep the start of a fresh run, in case the first check is too late."""
        if run.step == 0 and self.monitor.then is not None:
            run.sound = run.snapshot()

    def is_due(self, step: int, ends_epoch: bool) -> bool:
        """Whether the model is to be looked at after so many steps."""
        every = self.monitor.every
        return ends_epoch if every is None else step % every == 0

    def keep(self, run: Run) -> None:
        """Keep the run, after a sound check, to come back to."""
        if run.sound is not None and not run.watched.is_collapsed:
            run.sound = run.snapshot()

    def look(self, run: Run, bar: ProgressBar) -> bool:
        """Check the model; return whether the run has been set back to a sound one."""
        scores = {n: s(run.state.weights) for n, s in self._scores.items()}
        now = Check(**{name: score["val_robust"] for name, score in scores.items()})
        watched = run.watched
        before = None if watched.last is None else Check(*watched.last)
        was_collapsed = watched.is_collapsed
        watched.last = list(now)
        watched.scores |= {"monitor_fast": now.fast, "monitor_strong": now.strong}
        watched.is_collapsed = self.monitor.is_collapsed(before, now, self._chance)
        if was_collapsed or not watched.is_collapsed:
            return False
        step, is_set_back = run.step, run.sound is not None
        if is_set_back:
            run.set_back()
        run.watched.scores["collapsed"] = step
        bar.say_collapsed(step, now, run.step if is_set_back else None)
        self._warn(step, before, now, run.step if is_set_back else None)
        return is_set_back

    def _warn(
        self, step: int, before: Check | None, now: Check, back: int | None
    ) -> None:
        monitor = self.monitor
        earlier = (
            "" if before is None else f" ({before.strong:.3f} at the check before)"
        )
        if back is not None:
            objective = text(monitor.then)
            then = f"Training goes back to step {back} and goes on with {objective}."
        elif monitor.then is not None:
            then = "The objective to go on with (then=) does not hold either."
        else:
            then = (
                "Train with jr.training.NFGSM() or PGD, or say what to go on with: "
                "Monitor(then=objective)."
            )
        _host_checks.warn_user(
            f"catastrophic overfitting, seen at step {step}: accuracy is {now.fast:.3f} "
            f"under {text(monitor.fast)} and {now.strong:.3f}{earlier} under "
            f"{text(monitor.attack)}. {then}",
            CollapseWarning,
        )
