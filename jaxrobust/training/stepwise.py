"""Training one step at a time: the loop is the caller's."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from flax import nnx

from jaxrobust.training import _checks, groups
from jaxrobust.training.averages import EMA
from jaxrobust.training.epochs import Stepper
from jaxrobust.training.metrics import EpochMeans
from jaxrobust.training.running import Run
from jaxrobust.training.step import make_train_steps, value_and_grad
from jaxrobust.training.trainer import Trainer
from jaxrobust.types import Gradient, Objective


@dataclasses.dataclass(frozen=True)
class Step:
    """A step that has been taken, as `steps` yields it.

    Attributes:
      step: optimiser steps done, from 1.
      epoch: the epoch of the step, from 1.
      ends_epoch: whether it was the last of its epoch.
      metrics: loss, grad_norm and what else the objective returns, as arrays on the device:
        `float(step.metrics["loss"])` waits for the step.
    """

    step: int
    epoch: int
    ends_epoch: bool
    metrics: dict[str, jax.Array]
    _run: Run = dataclasses.field(repr=False)
    _trainer: Trainer = dataclasses.field(repr=False)

    def model(self) -> nnx.Module:
        """Return the model after this step, in evaluation mode, before the next is taken.

        Raises:
          RuntimeError: after that, as its arrays are those of the next step.
        """
        if self._run.step != self.step:
            raise RuntimeError(
                f"the model of step {self.step} is gone, step {self._run.step} has taken "
                "its place: call model() before the next step."
            )
        return self._trainer.model(self._run.state.evaluated)


def steps(
    model: nnx.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    x: Any,
    y: jax.typing.ArrayLike | None = None,
    *,
    batch_size: int | None = None,
    key: jax.Array,
    num_epochs: int | None = None,
    gradient: Gradient = value_and_grad,
    average: EMA | None = None,
    augment: Callable[..., jax.Array] | None = None,
    scale: float | None = None,
    attacked_mode: str = "eval",
    mesh: jax.sharding.Mesh | None = None,
    ema_decay: float | None = None,
) -> Iterator[Step]:
    """Return a generator that takes the steps of `fit`, for logging of one's own.

    Madry et al. 2018, arXiv:1706.06083, eq. 2.1, as `fit`: the same steps in the same order
    and, to the last bit, those with `steps_per_call=1`. There is no validation, no output
    directory and no resumption.

    Args:
      model: as of `fit`, and so are the others; it is not changed.
      objective: what is minimised.
      optimizer: the optimiser.
      x: inputs `[N, ...]`, or, without `y`, batches.
      y: labels `[N]`.
      batch_size: examples per step.
      key: PRNG key: permutations, augmentation, attacks.
      num_epochs: passes over the data; None for as many as are asked for.
      gradient: how the objective is differentiated.
      average: a moving average, `jr.training.EMA(decay)`, which `model()` then returns.
      augment: `augment(key, x) -> x` on a batch as it is stored.
      scale: what the stored inputs are divided by.
      attacked_mode: what the adversary sees, "eval" or "train".
      mesh: devices over which each batch is spread.
      ema_decay: the short form of `average=EMA(decay)`.

    Returns:
      A generator of steps with `step`, `epoch`, `ends_epoch`, `metrics` and `model()`.

    Raises:
      FloatingPointError: some steps after a loss or a gradient that is not finite.
      ValueError: for settings and data that do not fit together, before the first step.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr, optax
      >>> from flax import nnx
      >>> x, y = jnp.array([[0.0], [0.2], [0.8], [1.0]]), jnp.array([0, 0, 1, 1])
      >>> model = nnx.Linear(1, 2, rngs=nnx.Rngs(0))
      >>> for step in steps(model, jr.training.standard(), optax.adam(0.3), x, y,
      ...                   batch_size=2, key=jax.random.key(0)):
      ...     if step.ends_epoch and float(step.metrics["loss"]) < 0.1:
      ...         break
      >>> step.model()(x).argmax(-1).tolist()
      [0, 0, 1, 1]
    """
    if num_epochs is not None:
        _checks.check_counts(num_epochs)
    _checks.check_is_moving(average)
    trainer = Trainer(
        model,
        objective,
        optimizer,
        (x, y),
        batch_size=batch_size,
        key=key,
        gradient=gradient,
        average=groups.as_average(average, {"ema_decay": ema_decay}),
        augment=augment,
        scale=scale,
        attacked_mode=attacked_mode,
        mesh=mesh,
    )
    trainer.feed.check_epochs(num_epochs or 1)
    return _steps(trainer, num_epochs)


def _steps(trainer: Trainer, num_epochs: int | None) -> Iterator[Step]:
    run, feed = trainer.first_run(), trainer.feed
    train_steps = [make_train_steps(step, 1) for step in trainer.train_steps()]
    take = Stepper(feed, train_steps, trainer.step_key, most=1)
    while num_epochs is None or run.epoch < num_epochs:
        epoch = run.epoch + 1
        metrics = {name: value[0] for name, value in take(run, 1).items()}
        ends_epoch = run.step_in_epoch == feed.steps_per_epoch
        if ends_epoch:
            run.means.drain()
            run.means = EpochMeans()
            run.history.append({"epoch": epoch, "step": run.step})
        yield Step(run.step, epoch, ends_epoch, metrics, run, trainer)
