"""Forward passes over a data set, in batches of one compiled shape."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import losses
from jaxrobust._core import predictions
from jaxrobust._core.placing import Placing
from jaxrobust._cpu.convolution import fast_convolutions, is_slow_in_loops
from jaxrobust.attacks._model import rounded
from jaxrobust.evaluation.queue._problem import Problem
from jaxrobust.threats import narrow
from jaxrobust.types import Array, LogitsFn, Threat


def prepare(
    logits_fn: LogitsFn, threat: Threat, x, y, placing: Placing, size: int
) -> Problem:
    """Place the model and classify the clean inputs."""
    logits_fn, dtype = placing.replicate(logits_fn), x.dtype
    if narrow.is_narrow(dtype):
        logits_fn, x = rounded(logits_fn, dtype), x.astype(np.float32)
    clean = over_batches(lambda x: logits(logits_fn, x), x, placing, size)
    batch = jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)
    is_slow = is_slow_in_loops(fast_convolutions(logits_fn), batch)
    return Problem(logits_fn, threat, x, y, clean, placing, not is_slow, dtype)


def measure(problem: Problem, x_adv: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Classify the returned points; the figures of the report, each `[N]`."""
    rows = np.arange(len(problem.y))
    batch = (x_adv, problem.x, problem.logits, problem.y, rows)

    def figures(x_adv, x, clean, y, rows):
        return _figures(problem.logits_fn, problem.threat_of(rows), x_adv, x, clean, y)

    return over_batches(figures, batch, problem.placing, size, unpack=True)


def over_batches(
    function: Callable, arrays: Any, placing: Placing, size: int, unpack: bool = False
) -> Any:
    """Apply a function of batches to arrays `[N, ...]`; returns host arrays `[N, ...]`.

    Rows that only fill up the last batch are dropped from the result.
    """
    num_examples = len(jax.tree.leaves(arrays)[0])
    parts = []
    for rows, count in batches(np.arange(num_examples), size):
        host = jax.tree.map(lambda a, rows=rows: a[rows], arrays)
        batch = host if unpack else (host,)
        placed = (
            (*placing.spread(batch[:-1]), batch[-1])
            if unpack
            else placing.spread(batch)
        )
        result = placing.fetch(function(*placed))
        parts.append(jax.tree.map(lambda a, n=count: np.asarray(a)[:n], result))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def batches(rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield `size` row numbers and how many of them count; the last row is repeated."""
    for start in range(0, len(rows), size):
        chosen = np.minimum(np.arange(start, start + size), len(rows) - 1)
        yield rows[chosen], min(size, len(rows) - start)


@jax.jit
def logits(logits_fn: LogitsFn, x: Array) -> Array:
    """Return the logits in float32; of a model with several results all of them."""
    return jax.tree.map(lambda out: jnp.asarray(out, jnp.float32), logits_fn(x))


@jax.jit
def _figures(logits_fn, threat, x_adv, x, clean, y) -> dict[str, Array]:
    attacked = logits_fn(x_adv).astype(jnp.float32)
    return {
        "predicted": predictions.predict(clean),
        "predicted_adv": predictions.predict(attacked),
        "is_number": predictions.is_number(attacked),
        "confidence": jnp.max(jax.nn.softmax(clean), -1),
        "confidence_adv": jnp.max(jax.nn.softmax(attacked), -1),
        "loss": losses.cross_entropy(clean, y),
        "loss_adv": losses.cross_entropy(attacked, y),
        "distance": threat.distance(x_adv, x),
    }
