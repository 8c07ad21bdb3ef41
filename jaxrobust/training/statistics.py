"""BatchNorm statistics of weights that no training step has had, estimated anew."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrobust._cpu.convolution import fast_convolutions
from jaxrobust.training import _data_checks
from jaxrobust.training.running import Run
from jaxrobust.training.step import Weights, to_unit


def refresh_statistics(
    model: nnx.Module,
    x: jax.typing.ArrayLike,
    *,
    batch_size: int,
    scale: float | None = None,
) -> nnx.Module:
    """Return the model with BatchNorm statistics of these inputs, in evaluation mode.

    Izmailov et al. 2018, arXiv:1803.05407, section 3.2: weights that are an average have
    seen no data. The statistics are the means of those of the batches, in training mode,
    for weights that stay.

    Args:
      model: a Flax NNX module with `nnx.BatchNorm`; it is not changed. One without is
        returned as it is.
      x: inputs `[N, ...]`, of the training data; the last N mod batch_size are left out.
      batch_size: examples of a batch, at most N.
      scale: what the stored inputs are divided by, as in `fit`.

    Returns:
      A new module.

    Raises:
      ValueError: If `batch_size` does not fit, or `scale` is missing.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> model = nnx.BatchNorm(1, rngs=nnx.Rngs(0))
      >>> fresh = refresh_statistics(model, jnp.array([[1.0], [3.0]]), batch_size=2)
      >>> print(fresh.mean[...], fresh.var[...], model.mean[...])
      [2.] [1.] [0.]
    """
    x = jnp.asarray(x)
    if not 1 <= batch_size <= len(x):
        raise ValueError(
            f"batch_size is {batch_size}; it must lie between 1 and the number of inputs, "
            f"{len(x)}."
        )
    scale = _data_checks.to_scale(x, scale)
    starts = range(0, len(x) - batch_size + 1, batch_size)
    return refreshed(model, (to_unit(x[i : i + batch_size], scale) for i in starts))


def refreshed(model: nnx.Module, batches: Iterable[jax.Array]) -> nnx.Module:
    """Return the model, in evaluation mode, with the statistics of scaled batches."""
    model = nnx.clone(model)
    model.train()
    momenta = {}
    for path, module in nnx.iter_modules(model):
        if isinstance(
            module, nnx.BatchNorm
        ):  # what a batch leaves is its own statistics
            momenta[path], module.momentum = module.momentum, 0.0
    graph, params, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    if momenta:
        total, count = None, 0
        for x in batches:
            new = _statistics(graph, params, stats, rest, x)
            total = new if total is None else jax.tree.map(jnp.add, total, new)
            count += 1
        stats = jax.tree.map(lambda sum: sum / count, total)
    model = nnx.merge(graph, params, stats, rest, copy=True)
    for path, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            module.momentum = momenta[path]
    model.eval()
    return model


@partial(jax.jit, static_argnums=0)
def _statistics(graph: Any, params: Any, stats: Any, rest: Any, x: jax.Array) -> Any:
    """Return the batch statistics that a call in training mode leaves."""

    def call(params, stats, rest, x):
        model = nnx.merge(graph, params, stats, rest, copy=True)
        model(x)
        return nnx.split(model, nnx.Param, nnx.BatchStat, ...)[2]

    return fast_convolutions(call)(params, stats, rest, x)


class Averaging:
    """Takes the weights at the end of an epoch into the mean of a run."""

    def __init__(self, swa: Any, num_epochs: int, trainer: Any):
        """Remember from which epoch on."""
        self.first, self._every = swa.first(num_epochs), swa.every
        # What must be the same when a run is resumed.
        self.settings = dict(average=swa, averaged_from_epoch=self.first)
        self._trainer = trainer

    def __call__(self, run: Run) -> None:
        """Take the weights, where it is time; the epoch is not in the history yet."""
        since = run.epoch + 1 - self.first
        if since < 0 or since % self._every:
            return
        params, rest = run.state.weights
        if run.average is not None:
            params = _mean(run.average.params, params, run.num_averaged + 1)
        run.num_averaged += 1
        model = self._trainer.model(Weights(params, rest))  # it copies
        model = refreshed(model, self._trainer.clean_batches(run.epoch))
        _, params, rest = nnx.split(model, nnx.Param, ...)
        run.average = Weights(nnx.as_pure(params), nnx.as_pure(rest))


@jax.jit
def _mean(mean: Any, new: Any, count: jax.Array) -> Any:
    """Return the mean of `count` terms, of which `new` is the last."""

    def update(m, w):
        is_float = jnp.issubdtype(w.dtype, jnp.inexact)
        return m + ((w - m) / count).astype(m.dtype) if is_float else w

    return jax.tree.map(update, mean, new)
