"""The host's loop over epochs and steps; all arithmetic is in the functions it calls."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax

from jaxrobust.training import _checks, interrupts
from jaxrobust.training.metrics import FiniteCheck
from jaxrobust.training.progress import ProgressBar
from jaxrobust.training.run import Run, RunDirectory
from jaxrobust.training.step import Weights


@dataclasses.dataclass(frozen=True)
class Epochs:
    """Takes a run to its end.

    Attributes:
      train_steps: (state, order, number) -> (state, metrics), so many steps.
      validate: weights -> scores.
      order_of: epoch -> the order of the examples.
      check_finite: raises where weights have overflowed.
      num_epochs: epochs, in all.
      steps_per_epoch: optimiser steps of an epoch.
      steps_per_call: the most steps of one call.
    """

    train_steps: Callable[..., Any]
    validate: Callable[[Weights], dict[str, float]]
    order_of: Callable[[int], jax.Array]
    check_finite: FiniteCheck
    num_epochs: int
    steps_per_epoch: int
    steps_per_call: int

    def run(
        self,
        run: Run,
        directory: RunDirectory | None,
        checkpoint_every: int | None,
        progress: bool,
    ) -> None:
        """Train until the last epoch is over; an interrupt says how to go on."""
        num_steps = self.num_epochs * self.steps_per_epoch
        every = checkpoint_every or self.steps_per_epoch
        _checks.check_steps(run.step, num_steps)
        with ProgressBar(num_steps, run.step, is_shown=progress) as bar:
            try:
                self._run(run, directory, every, bar)
            except KeyboardInterrupt as interrupt:
                path, step = None, None
                if directory:
                    path, step = directory.path, directory.saved_step
                where = f"interrupted after {run.step} of {num_steps} steps"
                advice = interrupts.how_to_go_on(path, step)
                interrupt.add_note(f"jaxrobust: {where}. {advice}")
                raise

    def _run(
        self, run: Run, directory: RunDirectory | None, every: int, bar: ProgressBar
    ) -> None:
        num_steps = self.num_epochs * self.steps_per_epoch
        start = time.monotonic() - run.seconds
        order = self.order_of(run.step // self.steps_per_epoch)
        while run.step < num_steps:
            epoch, step_in_epoch = divmod(run.step, self.steps_per_epoch)
            if step_in_epoch == 0:
                order = self.order_of(epoch)
            num = min(
                self.steps_per_call,
                self.steps_per_epoch - step_in_epoch,
                every - run.step % every,
            )
            run.state, metrics = self.train_steps(run.state, order, num)
            run.means.push(run.step, num, metrics)
            run.step += num
            bar.update(run.step, f"{epoch + 1}/{self.num_epochs}", run.means.latest)
            ends_epoch = run.step % self.steps_per_epoch == 0
            is_saved = directory and (run.step % every == 0 or run.step == num_steps)
            if ends_epoch or is_saved:
                run.means.drain()
                self.check_finite(run.state, run.step)
            if ends_epoch:
                scores = self.validate(run.state.evaluated)
                run.end_epoch(scores, time.monotonic() - start)
                bar.end_epoch(run.history[-1], self.num_epochs)
                if directory:
                    directory.log(run.history[-1])
            if directory and is_saved:
                run.seconds = time.monotonic() - start
                directory.save(run)
