"""The outer minimisation: an Optax loop over a jitted step, with exact resumption."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, Unpack

import jax
import optax
from flax import nnx

from jaxrobust._core import cpu, processes
from jaxrobust._cpu.convolution import is_slow_in_loops
from jaxrobust.training import _checks, groups
from jaxrobust.training.averages import EMA, SWA
from jaxrobust.training.checkpoint import Checkpoints
from jaxrobust.training.epochs import Epochs, Stepper
from jaxrobust.training.metrics import FiniteCheck
from jaxrobust.training.monitor import Monitor
from jaxrobust.training.run import RunDirectory
from jaxrobust.training.step import make_train_steps, value_and_grad
from jaxrobust.training.trainer import Trainer
from jaxrobust.training.validation import Validation
from jaxrobust.types import Gradient, Objective


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What training returns; both models are in evaluation mode.

    Attributes:
      last: the model after the last step, or the `average`.
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


@groups.explained
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
    validation: Validation | tuple[Any, Any] | None = None,
    monitor: Monitor | None = None,
    average: EMA | SWA | None = None,
    augment: Callable[..., jax.Array] | None = None,
    scale: float | None = None,
    attacked_mode: str = "eval",
    mesh: jax.sharding.Mesh | None = None,
    out: Checkpoints | str | os.PathLike | None = None,
    steps_per_call: int | None = None,
    on_epoch: Callable[[dict[str, Any]], bool | None] | None = None,
    progress: bool = True,
    **short: Unpack[groups.Short],
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
      validation: what is scored after each epoch, `jr.training.Validation(x, y, attack=,
          threat=)`, or a pair of inputs and labels for the clean accuracy.
      monitor: what watches for catastrophic overfitting, `jr.training.Monitor()`.
      average: an average of the weights, `jr.training.EMA(decay)` or `SWA()`, which is
          then what is validated, saved and returned.
      augment: `augment(key, x) -> x` on a batch as it is stored, inside the step, for
          example `jaxrobust.data.pad_crop_flip`.
      scale: what the stored inputs are divided by; by default 255 for uint8 and 1
          for floats.
      attacked_mode: what the adversary sees: "eval" (running statistics, no dropout)
          or "train" (batch statistics, which the attack does not write back).
      mesh: devices over which each batch is spread, all axes together; parameters
          are copied to all of them, unless they are on the mesh already. The result is that
          of one device up to rounding.
      out: output directory, or `jr.training.Checkpoints(directory, every=, metadata=,
          resume=)`, which says how often and with what; on several processes, on a file
          system that all of them see.
      steps_per_call: steps that one call of the compiled program takes, without the
          host; the bar moves once for each call. By default 100, and on the CPU 10, or 1
          with convolutions that are slow in a loop there (with groups, say).
      on_epoch: called with each line of the history, to log it elsewhere; what returns True
          ends the training, as `lambda line: line["epoch"] - line["best_epoch"] >= 5` does
          after 5 epochs without a better one. A run that is resumed calls it with the lines
          of earlier epochs first; one that was set back by the monitor tells epochs anew.
      progress: whether to tell how far it is, on stderr: a bar on a terminal, and a line
          for each epoch, in files and notebooks too.
      **short: short forms of parts of these groups: `validation_attack`, `threat`,
          `validation_batch_size` of the validation; `checkpoint_every`, `metadata`,
          `resume` of the checkpoints; `ema_decay=d` for `average=EMA(d)`.

    Returns:
      The last and the best model and the history.

    Warns:
      CollapseWarning: at once where the monitor sees catastrophic overfitting.

    Raises:
      FloatingPointError: where the loss, the gradient or the weights are not finite; a
          checkpoint is written only where they are.
      KeyboardInterrupt: with a note on how to go on.
      ValueError: for settings that do not fit together or not to the run in `out`.
      TypeError: for what is of another kind, and for a misspelt name, with the right one.
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
        num_epochs,
        checkpoint_every=short.get("checkpoint_every"),
        steps_per_call=steps_per_call,
    )
    checkpoints = groups.as_checkpoints(out, short)
    trainer = Trainer(
        model,
        objective,
        optimizer,
        (x, y),
        batch_size=batch_size,
        key=key,
        gradient=gradient,
        validation=groups.as_validation(validation, short),
        monitor=monitor,
        average=groups.as_average(average, short),
        augment=augment,
        scale=scale,
        attacked_mode=attacked_mode,
        mesh=mesh,
    )
    trainer.feed.check_epochs(num_epochs)
    processes.check_path("out", checkpoints.directory or None, mesh)
    scores, watch = trainer.scores(), trainer.watch()
    averaging, directory = trainer.averaging(num_epochs), None
    if checkpoints.directory:
        settings = trainer.settings | (averaging.settings if averaging else {})
        directory = RunDirectory(checkpoints, settings, trainer.placing)
    run = trainer.first_run()
    steps, inputs = trainer.train_steps(), trainer.step_inputs(run)
    for step in steps:  # errors show before anything is written
        jax.eval_shape(step, *inputs)
    check_finite = FiniteCheck(run.state)
    if directory:
        programs = trainer.programs(steps, run)
        programs |= {"validation": scores.program(run.best)} if scores else {}
        programs |= watch.programs(run.best) if watch else {}
        run = directory.begin(run, programs)
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
        checkpoint_every=checkpoints.every,
    ).run(run, directory, progress)
    last, best = (trainer.model(w) for w in (run.evaluated, run.best))
    return FitResult(last, best, run.history, run.best_epoch)
