"""The outer minimisation: an Optax loop over a jitted step, with exact resumption."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from flax import nnx

from jaxrobust._core import cpu, processes
from jaxrobust._cpu.convolution import is_slow_in_loops
from jaxrobust.training import _checks
from jaxrobust.training.averages import EMA, SWA
from jaxrobust.training.epochs import Epochs, Stepper
from jaxrobust.training.metrics import FiniteCheck
from jaxrobust.training.monitor import Monitor
from jaxrobust.training.run import RunDirectory
from jaxrobust.training.statistics import Averaging
from jaxrobust.training.step import make_train_steps, value_and_grad
from jaxrobust.training.trainer import Trainer
from jaxrobust.types import Attack, Gradient, Objective, Threat


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What training returns; both models are in evaluation mode.

    Attributes:
      last: the model after the last step (its moving average, with `ema_decay`).
      best: the model of the epoch with the best validation accuracy: robust where
          there is an attack, else clean. Equal to `last` without validation.
      history: one dict per epoch: epoch, step, seconds, train_loss, train_accuracy,
          train_grad_norm and others of the objective, val_clean, val_robust, what a
          monitor adds, and best_epoch, the best so far.
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
    x: Any,
    y: jax.typing.ArrayLike | None = None,
    *,
    num_epochs: int,
    batch_size: int | None = None,
    key: jax.Array,
    gradient: Gradient = value_and_grad,
    validation: tuple[jax.typing.ArrayLike, jax.typing.ArrayLike] | None = None,
    validation_attack: Attack | None = None,
    threat: Threat | None = None,
    validation_batch_size: int | None = None,
    monitor: Monitor | None = None,
    augment: Callable[..., jax.Array] | None = None,
    scale: float | None = None,
    attacked_mode: str = "eval",
    ema_decay: float | None = None,
    average: EMA | SWA | None = None,
    mesh: jax.sharding.Mesh | None = None,
    out: str | os.PathLike | None = None,
    metadata: Mapping[str, Any] | None = None,
    checkpoint_every: int | None = None,
    steps_per_call: int | None = None,
    resume: bool = True,
    on_epoch: Callable[[dict[str, Any]], bool | None] | None = None,
    progress: bool = True,
) -> FitResult:
    """Train a Flax NNX model with an objective and an Optax optimiser.

    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks",
    ICLR 2018, eq. 2.1: each step minimises over the parameters what the objective's
    attack maximises over the inputs.

    With `out`, the run writes there `metrics.jsonl` (a line per epoch) and the
    checkpoints `last` and `best`, which `load_checkpoint` reads. Called again with the
    same settings it continues after the last checkpoint, to the same last bit (on one
    device of the same kind), or returns where it had finished. `num_epochs` may grow from
    call to call.

    The same settings are those that compute the same: the traced programs of optimiser,
    augmentation, objective, model and validation are compared, with the constants of
    closures (a learning rate, an eps schedule), besides data, key and options. What calls
    the host (`jax.pure_callback`) cannot be compared, and such a run is not resumed;
    `jax.debug.callback` is no obstacle. Another version of JAX, or a GPU after a CPU, may
    trace another program, which the error then says.

    Args:
      model: any module `[B, ...] -> [B, C]`, for every objective; it is not changed.
          BatchNorm and Dropout are in training mode where the objective trains. Dropout's
          own rngs are part of the state. Modules with `dtype=jnp.bfloat16` and
          `param_dtype=jnp.float32` compute in half precision: parameters, losses, gradients
          and those of the attack stay float32. `nnx.remat` inside it works as elsewhere.
      objective: an objective with its two problems, `inner` and `outer`, see
          `jaxrobust.types.Objective`, or a function `(trained_fn, attacked_fn, x, y, *,
          key, step) -> (loss, metrics)`, a scalar and a dict of scalars. An attribute
          `threat`, if it has one, is checked against the data.
      optimizer: the optimiser. Those that need the loss or its function get them
          (`optax.contrib.reduce_on_plateau`, Polyak steps, `optax.lbfgs`): that of the
          same batch, attacked anew at each evaluation. `optax.MultiSteps(optimizer, k)`
          takes one step for k batches: one of k times the size, but for BatchNorm.
      x: inputs `[N, ...]`, uint8 or float, kept on the device. Or, without `y`, batches
          `(x, y)` for data that do not fit there: an iterable that is begun anew in each
          epoch (a list, a loader of torch, grain or tf.data), or a function from the number
          of the epoch, from 0, to one; all of one shape. An epoch is `len` of it, or as
          long as the first one. A run that is resumed draws the batches of its epoch that
          were used and drops them: that is exact where an epoch's batches are the same
          whenever it is begun, as those of a function of the epoch are, and those of a
          loader that shuffles by a state of its own are not.
      y: labels `[N]`, integers in 0..C-1.
      num_epochs: passes over the data, in all.
      batch_size: examples per step, those of the batches where these are given. The
          permutation's last N mod batch_size examples of an epoch are left out of it.
      key: PRNG key: permutations, augmentation, attacks.
      gradient: `(loss_fn, params) -> ((loss, aux), grads)`, where the attack of the step
          has been crafted and is held fixed; by default `jax.value_and_grad`. Methods
          such as SAM and AWP, which take the gradient at other parameters, go here.
      validation: inputs and labels, scored after each epoch.
      validation_attack: the attack for the robust accuracy on `validation`.
      threat: the threat of `validation_attack`.
      validation_batch_size: by default `batch_size`.
      monitor: what watches for catastrophic overfitting, `jr.training.Monitor()`.
      augment: `augment(key, x) -> x` on a batch as it is stored, inside the step, for
          example `jaxrobust.data.pad_crop_flip`.
      scale: what the stored inputs are divided by; by default 255 for uint8 and 1
          for floats.
      attacked_mode: what the adversary sees: "eval" (running statistics, no dropout)
          or "train" (batch statistics, which the attack does not write back).
      ema_decay: decay of a moving average of the weights and batch statistics,
          in (0, 1); where given, the average is validated, saved and returned.
      average: an average of the weights, `jr.training.SWA()` or `EMA(decay)`, likewise.
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
      on_epoch: called with each line of the history, to log it elsewhere; what returns True
          ends the training, as `lambda line: line["epoch"] - line["best_epoch"] >= 5` does
          after 5 epochs without a better one. A run that is resumed calls it with the lines
          of earlier epochs first; one that was set back by the monitor tells epochs anew.
      progress: whether to tell how far it is, on stderr: a bar on a terminal, and a line
          for each epoch, in files and notebooks too.

    Returns:
      The last and the best model and the history.

    Warns:
      CollapseWarning: at once where the monitor sees catastrophic overfitting.

    Raises:
      FloatingPointError: where the loss, the gradient or the weights are not finite; a
          checkpoint is written only where they are.
      KeyboardInterrupt: with a note on how to go on.
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
    _checks.check_counts(
        num_epochs, checkpoint_every=checkpoint_every, steps_per_call=steps_per_call
    )
    _checks.check_is_monitor(monitor)
    ema_decay = _checks.check_average(average, ema_decay)
    trainer = Trainer(
        model,
        objective,
        optimizer,
        (x, y),
        batch_size=batch_size,
        key=key,
        validation=validation,
        threat=threat,
        then=monitor.then if monitor else None,
        mesh=mesh,
        scale=scale,
        augment=augment,
        gradient=gradient,
        attacked_mode=attacked_mode,
        ema_decay=ema_decay,
    )
    trainer.feed.check_epochs(num_epochs)
    _checks.check_validation(validation, validation_attack, threat)
    processes.check_path("out", out or None, mesh)
    scores = trainer.scores(validation_attack, threat, validation_batch_size)
    watch = trainer.watch(monitor, validation_batch_size)
    averaging, directory = None, None
    if isinstance(average, SWA):
        _checks.check_arrays(trainer.feed, average)
        averaging = Averaging(average, num_epochs, trainer)
    if out:
        settings = trainer.settings | dict(
            validation_attack=validation_attack, threat=threat
        )
        settings |= dict(monitor=monitor) if monitor else {}
        if averaging:
            settings |= dict(average=average, averaged_from_epoch=averaging.first)
        directory = RunDirectory(out, settings, metadata or {}, trainer.placing)
    run = trainer.first_run()
    steps, inputs = trainer.train_steps(), trainer.step_inputs(run)
    for step in steps:  # errors show before anything is written
        jax.eval_shape(step, *inputs)
    check_finite = FiniteCheck(run.state)
    if directory:
        programs = trainer.programs(steps, run)
        programs |= {"validation": scores.program(run.best)} if scores else {}
        programs |= watch.programs(run.best) if watch else {}
        run = directory.begin(run, programs, resume=resume)
        run.state, run.best = trainer.placing.replicate((run.state, run.best))
    if watch:
        watch.begin(run)
    if run.epoch == num_epochs:
        steps_per_call = 1  # there is nothing left to do
    elif steps_per_call is None:
        is_slow = is_slow_in_loops(steps[0], *inputs)
        steps_per_call = 1 if is_slow else cpu.steps_per_call()
    most = min(steps_per_call, trainer.most_steps)
    Epochs(
        Stepper(
            trainer.feed,
            [make_train_steps(step, most) for step in steps],
            trainer.step_key,
            most,
        ),
        validate=lambda weights: scores(weights) if scores else {},
        check_finite=check_finite,
        watch=watch,
        average=averaging,
        on_epoch=on_epoch,
        num_epochs=num_epochs,
        checkpoint_every=checkpoint_every,
    ).run(run, directory, progress)
    last, best = (trainer.model(w) for w in (run.evaluated, run.best))
    return FitResult(last, best, run.history, run.best_epoch)
