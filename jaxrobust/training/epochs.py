"""The host's loop over epochs and steps; all arithmetic is in the functions it calls."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxrobust._core import processes
from jaxrobust.training import _checks, interrupts
from jaxrobust.training.batches import Batches
from jaxrobust.training.collapse import Watch
from jaxrobust.training.feed import Arrays
from jaxrobust.training.metrics import FiniteCheck
from jaxrobust.training.progress import ProgressBar
from jaxrobust.training.run import RunDirectory
from jaxrobust.training.running import Run
from jaxrobust.training.step import Weights


@dataclasses.dataclass(frozen=True)
class Stepper:
    """Takes steps of a run.

    Attributes:
      feed: where the batches come from.
      train_steps: (state, x, y, order, key, number) -> (state, metrics), for the objective
          and for the one after a collapse.
      key: of augmentation and objective.
      most: the most steps of one call.
    """

    feed: Arrays | Batches
    train_steps: Sequence[Callable[..., Any]]
    key: jax.Array
    most: int

    def __call__(self, run: Run, num: int) -> dict[str, jax.Array]:
        """Take so many steps, at most `most` and within an epoch; return their metrics."""
        batch = self.feed.at(run.epoch, run.step_in_epoch)
        train_steps = self.train_steps[run.watched.is_replaced]
        run.state, metrics = train_steps(run.state, *batch, self.key, num)
        run.means.push(run.step, num, metrics)
        run.step += num
        self.feed.ahead()
        return metrics


@dataclasses.dataclass(frozen=True)
class Epochs:
    """Takes a run to its end.

    Attributes:
      take: takes steps.
      validate: weights -> scores.
      check_finite: raises where weights have overflowed.
      watch: the monitor, if there is one.
      average: takes the weights at the end of an epoch into a mean.
      on_epoch: is told each line of the history; True ends the run.
      num_epochs: epochs, in all.
      checkpoint_every: steps between checkpoints; None: an epoch.
    """

    take: Stepper
    validate: Callable[[Weights], dict[str, float]]
    check_finite: FiniteCheck
    watch: Watch | None
    average: Callable[[Run], None] | None
    on_epoch: Callable[[dict[str, Any]], bool | None] | None
    num_epochs: int
    checkpoint_every: int | None

    def run(self, run: Run, directory: RunDirectory | None, progress: bool) -> None:
        """Train until the last epoch is over; what stops it says how to go on."""
        feed = self.take.feed
        if feed.steps_per_epoch is None and run.history:
            feed.steps_per_epoch = run.history[0]["step"]
        _checks.check_steps(run.step, self._total())
        with ProgressBar(self._total(), run.step, is_shown=progress) as bar:
            try:
                start = time.monotonic() - run.seconds
                # A resumed run is told from its beginning: a function may remember.
                is_over = [self._tell(line) for line in run.history]
                while run.epoch < self.num_epochs and not any(is_over):
                    is_over = [self._advance(run, directory, bar, start)]
            except (KeyboardInterrupt, Exception) as error:
                if isinstance(error, KeyboardInterrupt) or feed.has_failed:
                    self._explain(error, run, directory)
                raise

    def _total(self) -> int | None:
        """Return the number of steps, if it is known."""
        steps = self.take.feed.steps_per_epoch
        return None if steps is None else self.num_epochs * steps

    def _explain(
        self, error: BaseException, run: Run, directory: RunDirectory | None
    ) -> None:
        path, step = None, None
        if directory:
            path, step = directory.path, directory.saved_step
        total = self._total()
        where = f"interrupted after {run.step}{f' of {total}' if total else ''} steps"
        error.add_note(f"jaxrobust: {where}. {interrupts.how_to_go_on(path, step)}")

    def _advance(
        self, run: Run, directory: RunDirectory | None, bar: ProgressBar, start: float
    ) -> bool:
        """Take one call's steps, and do what is due after them; True ends the run."""
        epoch, every = run.epoch, self.checkpoint_every
        self.take(run, self._num_steps(run))
        bar.know(self._total())
        bar.update(run.step, f"{epoch + 1}/{self.num_epochs}", run.means.latest)
        ends_epoch = run.step_in_epoch == self.take.feed.steps_per_epoch
        is_over = ends_epoch and epoch + 1 == self.num_epochs
        is_time = ends_epoch if every is None else run.step % every == 0
        is_saved = directory is not None and (is_time or is_over)
        is_due = self.watch is not None and self.watch.is_due(run.step, ends_epoch)
        watch = self.watch if is_due else None
        if ends_epoch or is_saved or watch:
            run.means.drain()
            self.check_finite(run.state, run.step)
        if watch and watch.look(run, bar):
            if directory:
                directory.set_back(run)
            return False
        if ends_epoch:
            if self.average:
                self.average(run)
            scores = self.validate(run.evaluated)
            run.end_epoch(scores, time.monotonic() - start)
            bar.end_epoch(run.history[-1], self.num_epochs)
            if directory:
                directory.log(run.history[-1])
            is_over |= self._tell(run.history[-1])
        if watch:
            watch.keep(run)
        if directory and (is_saved or is_over):
            run.seconds = time.monotonic() - start
            directory.save(run)
        return is_over

    def _tell(self, line: dict[str, Any]) -> bool:
        """Tell a line of the history; return whether the run is to end."""
        return self.on_epoch is not None and processes.decide(
            bool(self.on_epoch(dict(line)))
        )

    def _num_steps(self, run: Run) -> int:
        """Return how many steps there are before something is due."""
        steps = self.take.feed.steps_per_epoch
        if steps is None:
            return 1
        left = steps - run.step_in_epoch
        watched = self.watch.monitor.every if self.watch else None
        dues = [every for every in (self.checkpoint_every, watched) if every]
        return min(self.take.most, left, *(every - run.step % every for every in dues))
