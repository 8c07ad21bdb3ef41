"""The outer minimisation: an Optax loop over a jitted step, with exact resumption."""

import collections
import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxrobust import _processes
from jaxrobust._placing import Placing
from jaxrobust.convolution import is_slow_in_loops
from jaxrobust.training import _checks
from jaxrobust.training.metrics import ProgressBar
from jaxrobust.training.objectives import Adversarial, Standard
from jaxrobust.training.run import Run, RunDirectory
from jaxrobust.training.step import (
    TrainState,
    Weights,
    copy_tree,
    epoch_order,
    logits_fn,
    make_train_step,
    make_train_steps,
    make_validate,
    merge_eval,
    split_model,
)
from jaxrobust.types import Attack, Objective, Threat

# On the CPU a call asks the system for its memory anew, and the bar should move.
_STEPS_PER_CALL = collections.defaultdict(lambda: 100, cpu=10)


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What training returns; both models are in evaluation mode.

    Attributes:
      last: the model after the last step (its moving average, with `ema_decay`).
      best: the model of the epoch with the best validation accuracy: robust where
          there is an attack, else clean. Equal to `last` without validation.
      history: one dict per epoch: epoch, step, seconds, train_loss, train_accuracy,
          train_grad_norm and others of the objective, val_clean, val_robust.
      best_epoch: the epoch of `best`, from 1.

    Example:
      >>> import jax, optax
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> from flax import nnx
      >>> result = fit(nnx.Linear(1, 2, rngs=nnx.Rngs(0)), jr.training.standard(),
      ...              optax.sgd(0.1), jnp.ones((4, 1)), jnp.zeros(4, int),
      ...              num_epochs=2, batch_size=2, key=jax.random.key(0))
      >>> len(result.history), result.history[-1]["step"]
      (2, 4)
    """

    last: nnx.Module
    best: nnx.Module
    history: list[dict[str, Any]]
    best_epoch: int


def fit(
    model: nnx.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    x: jax.typing.ArrayLike,
    y: jax.typing.ArrayLike,
    *,
    num_epochs: int,
    batch_size: int,
    key: jax.Array,
    validation: tuple[jax.typing.ArrayLike, jax.typing.ArrayLike] | None = None,
    validation_attack: Attack | None = None,
    threat: Threat | None = None,
    validation_batch_size: int | None = None,
    augment: Callable[..., jax.Array] | None = None,
    scale: float | None = None,
    attacked_mode: str = "eval",
    ema_decay: float | None = None,
    mesh: jax.sharding.Mesh | None = None,
    out: str | os.PathLike | None = None,
    metadata: Mapping[str, Any] | None = None,
    checkpoint_every: int | None = None,
    steps_per_call: int | None = None,
    resume: bool = True,
    progress: bool = True,
) -> FitResult:
    """Train a Flax NNX model with an objective and an Optax optimiser.

    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks",
    ICLR 2018, eq. 2.1: each step minimises over the parameters what the objective's
    attack maximises over the inputs.

    With `out`, the run writes there `metrics.jsonl` (a line per epoch) and the
    checkpoints `last` and `best`, which `load_checkpoint` reads. Called again with the
    same settings it continues after the last checkpoint, to the same last bit (on one
    device of the same kind), or returns at once where it had finished. `num_epochs`
    may grow from call to call.

    Args:
      model: any module `[B, ...] -> [B, C]`; it is not changed. BatchNorm and Dropout
          are in training mode where the objective trains. Dropout's own rngs are
          part of the state.
      objective: `(trained_fn, attacked_fn, x, y, *, key, step) -> (loss,
          metrics)`.
      optimizer: the optimiser; its state is not compared when resuming, so put the
          learning rate into `metadata`.
      x: inputs `[N, ...]`, uint8 or float, kept on the device.
      y: labels `[N]`.
      num_epochs: passes over the data, in all.
      batch_size: examples per step. The permutation's last N mod batch_size examples
          of an epoch are left out of it.
      key: typed PRNG key: permutations, augmentation, attacks.
      validation: inputs and labels, scored after each epoch.
      validation_attack: the attack for the robust accuracy on `validation`.
      threat: the threat of `validation_attack`.
      validation_batch_size: by default `batch_size`.
      augment: `augment(key, x) -> x` on a batch as it is stored, inside the step, for
          example `jaxrobust.data.pad_crop_flip`.
      scale: what the stored inputs are divided by; by default 255 for uint8 and 1
          for floats.
      attacked_mode: what the adversary sees: "eval" (running statistics, no dropout)
          or "train" (batch statistics, which the attack does not write back).
      ema_decay: decay of a moving average of the weights and batch statistics,
          in (0, 1); where given, the average is validated, saved and returned.
      mesh: devices over which each batch is spread, all axes together; parameters
          are copied to all of them, unless they are on the mesh already. The result is that
          of one device up to rounding.
      out: output directory; on several processes, on a file system that all of them
          see. Process 0 alone writes there.
      metadata: JSON values for the checkpoints; see `save_checkpoint`. A run is
          resumed with the same metadata only.
      checkpoint_every: steps between checkpoints; by default an epoch.
      steps_per_call: steps that one call of the compiled program takes, without the
          host; the bar moves once for each call. By default 100, and on the CPU 10, or 1
          with convolutions that are slow in a loop there (with groups, say).
      resume: whether to continue what is in `out`; False replaces it.
      progress: whether to show a bar, on a terminal.

    Returns:
      The last and the best model and the history.

    Raises:
      FloatingPointError: where the loss or the gradient is not finite.
      ValueError: for settings that do not fit together or not to the run in `out`.
      OSError: where `out` cannot be written.

    Example:
      >>> import jax, optax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> def objective(trained_fn, attacked_fn, x, y, *, key, step):
      ...     logits = trained_fn(x)
      ...     loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
      ...     return loss, {"accuracy": (logits.argmax(-1) == y).mean()}
      >>> x = jnp.array([[0.0], [0.2], [0.8], [1.0]])
      >>> y = jnp.array([0, 0, 1, 1])
      >>> result = fit(nnx.Linear(1, 2, rngs=nnx.Rngs(0)), objective, optax.adam(0.3),
      ...              x, y, num_epochs=20, batch_size=2, key=jax.random.key(0))
      >>> result.last(x).argmax(-1).tolist()
      [0, 0, 1, 1]
    """
    _checks.check_parts(model, objective, optimizer)
    x, y, validation = _checks.check_data(x, y, validation)
    _checks.check_options(
        len(x), num_epochs, batch_size, checkpoint_every, ema_decay, attacked_mode, key
    )
    steps_per_epoch = len(x) // batch_size
    _checks.check_steps_per_call(steps_per_call)
    _checks.check_validation(validation, validation_attack, threat)
    scale = _checks.to_scale(x, scale)
    _checks.check_range(x, scale, objective)
    options = dict(
        batch_size=batch_size,
        scale=scale,
        augment=augment,
        attacked_mode=attacked_mode,
        ema_decay=ema_decay,
    )
    scoring = dict(attack=validation_attack, threat=threat)
    settings = dict(
        key=key,
        data=(x, y),
        objective=objective,
        validation=validation,
        validation_attack=validation_attack,
        threat=threat,
        **options,
    )
    placing = Placing(mesh)
    _checks.check_mesh(mesh, batch_size)
    _processes.check_path("out", out or None, mesh)
    directory = RunDirectory(out, settings, metadata or {}, placing) if out else None
    order_key, step_key, scoring_key = placing.replicate(
        tuple(jax.random.split(key, 3))
    )
    views, weights = split_model(model)
    if validation or isinstance(objective, Standard | Adversarial):
        model_fn = logits_fn(views.eval, weights)
        _checks.check_model(model_fn, x[:batch_size], y, validation, augment)
    train_step = make_train_step(
        views, objective, optimizer, placing=placing, **options
    )
    run = _start(weights, optimizer, ema_decay, directory, resume)
    run.state, run.best, x, y, validation = placing.replicate(
        (run.state, run.best, x, y, validation)
    )
    if run.step == num_epochs * steps_per_epoch:
        steps_per_call = 1  # there is nothing left to do, nor to trace
    elif steps_per_call is None:
        order = epoch_order(order_key, 0, len(x))
        is_slow = is_slow_in_loops(train_step, run.state, x, y, order, step_key)
        steps_per_call = 1 if is_slow else _STEPS_PER_CALL[jax.default_backend()]
    steps_per_call = min(steps_per_call, steps_per_epoch)
    train_steps = make_train_steps(train_step, steps_per_call)
    loop = _Loop(
        train_steps=lambda state, order, num: train_steps(
            state, x, y, order, step_key, num
        ),
        validate=make_validate(
            views,
            validation,
            batch_size=validation_batch_size or batch_size,
            scale=options["scale"],
            key=scoring_key,
            **scoring,
        ),
        order_of=lambda epoch: epoch_order(order_key, epoch, len(x)),
        num_epochs=num_epochs,
        steps_per_epoch=steps_per_epoch,
        steps_per_call=steps_per_call,
    )
    loop.run(run, directory, checkpoint_every, progress)
    last, best = (merge_eval(views, w) for w in (run.state.evaluated, run.best))
    return FitResult(last, best, run.history, run.best_epoch)


def _start(
    weights: Weights,
    optimizer: optax.GradientTransformation,
    ema_decay: float | None,
    directory: RunDirectory | None,
    resume: bool,
) -> Run:
    state = TrainState(
        step=jnp.int32(0),
        weights=weights,
        # A copy, as some optimisers keep the parameters themselves in their state.
        opt_state=copy_tree(optimizer.init(weights.params)),
        ema=None if ema_decay is None else copy_tree(weights),
    )
    run = Run(state, best=copy_tree(weights))
    if directory:
        if resume:
            run = directory.restore(run)
        else:
            directory.clear()
        directory.start(run)
    return run


@dataclasses.dataclass(frozen=True)
class _Loop:
    """The host's loop over epochs and steps; all arithmetic is in its functions."""

    train_steps: Callable[..., Any]
    validate: Callable[[Weights], dict[str, float]]
    order_of: Callable[[int], jax.Array]
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
        num_steps = self.num_epochs * self.steps_per_epoch
        every = checkpoint_every or self.steps_per_epoch
        _checks.check_steps(run.step, num_steps)
        start = time.monotonic() - run.seconds
        order = self.order_of(run.step // self.steps_per_epoch)
        with ProgressBar(num_steps, run.step, is_shown=progress) as bar:
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
                if run.step % self.steps_per_epoch == 0:
                    run.means.drain()
                    scores = self.validate(run.state.evaluated)
                    run.end_epoch(scores, time.monotonic() - start)
                    if directory:
                        directory.log(run.history[-1])
                if directory and (run.step % every == 0 or run.step == num_steps):
                    run.means.drain()
                    run.seconds = time.monotonic() - start
                    directory.save(run)
