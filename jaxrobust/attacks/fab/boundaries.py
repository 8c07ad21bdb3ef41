"""Decision boundaries of a classifier, linearised at a point."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import threats
from jaxrobust._core import batching, cpu, predictions
from jaxrobust.threats import hyperplanes
from jaxrobust.threats.norms import safe_norm
from jaxrobust.types import Array, LogitsFn

# So many gradients at a time: memory does not grow with the number of classes.
_AT_ONCE = 16


class Boundary(NamedTuple):
    """Where the logits of two classes tie: gap + <w, z - x_adv> = 0."""

    gap: Array  # z_t - z_y at the iterate, `[B]`
    w: Array  # its gradient, `[B, ...]`
    distance: Array  # from the iterate, `[B]`


def towards_target(logits_fn: LogitsFn, x_adv: Array, y: Any, threat: Any):
    """Return gap = z_t - z_y `[B]`, its gradient `[B, ...]` and the logits."""
    labels, targets = y
    logits, pull_back = jax.vjp(logits_fn, x_adv)
    direction = _one_hot(targets, logits) - _one_hot(labels, logits)
    (w,) = pull_back(direction)
    wide = predictions.wide(logits)
    gap = batching.take(wide, targets) - batching.take(wide, labels)
    return _resolved(gap, labels, logits), _usable(w, threat), wide


def towards_any(logits_fn: LogitsFn, x_adv: Array, y: Array, threat: Any):
    """Return the same for the wrong class whose linearised boundary is nearest, eq. (7).

    The Jacobian of the C - 1 differences of logits: C - 1 gradients.
    """
    logits, pull_back = jax.vjp(logits_fn, x_adv)
    wide, num_classes = predictions.wide(logits), logits.shape[-1]
    dual_order = hyperplanes.geometry_of(threat)[1]

    def nearest_of(offsets: Array) -> Boundary:
        """Return the nearest of the boundaries to the classes y + offsets (modulo C)."""
        others = (y[None] + offsets[:, None]) % num_classes
        directions = _one_hot(others, logits) - _one_hot(y, logits)[None]
        w = _usable(jax.vmap(lambda d: pull_back(d)[0])(directions), threat)
        gaps = jax.vmap(batching.take, (None, 0))(wide, others)
        gaps = gaps - batching.take(wide, y)[None]
        dual_norm = safe_norm(jax.vmap(batching.flatten)(w), dual_order)
        distance = jnp.abs(gaps) / jnp.where(dual_norm > 0, dual_norm, 1)
        is_there = (dual_norm > 0) & jnp.isfinite(distance)
        distance = jnp.where(is_there, distance, jnp.inf)
        first = jnp.argmin(distance, axis=0)
        choose = jax.vmap(lambda values, i: values[i], (1, 0))
        return Boundary(*(choose(values, first) for values in (gaps, w, distance)))

    def keep(best: Boundary, offsets: Array) -> tuple[Boundary, None]:
        found = nearest_of(offsets)
        select = functools.partial(batching.where, found.distance < best.distance)
        return jax.tree.map(select, found, best), None

    size = min(num_classes - 1, _AT_ONCE)
    count = -(-(num_classes - 1) // size)
    # The last class fills up the last chunk.
    offsets = jnp.minimum(jnp.arange(1, count * size + 1), num_classes - 1)
    offsets = offsets.reshape(count, size)
    found = nearest_of(offsets[0])
    if count > 1:
        found, _ = jax.lax.scan(keep, found, offsets[1:])
    return _resolved(found.gap, y, logits), found.w, wide


def _one_hot(labels: Array, logits: Array) -> Array:
    return jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)


def _resolved(gap: Array, y: Array, logits: Array) -> Array:
    """Return the gap, a tie as if it were just short of the boundary.

    Logits that are large, or of half precision, tie long before the boundary is crossed.
    A step of length zero would end the search there.
    """
    size = jnp.abs(batching.take(predictions.wide(logits), y))
    unit = float(jnp.finfo(logits.dtype).eps) * size
    return jnp.where(jnp.abs(gap) <= unit, -unit, gap)


def _usable(w: Array, threat: Any) -> Array:
    """Return the gradient in float32, zero where it is not finite or where masked."""
    w = w.astype(jnp.promote_types(w.dtype, jnp.float32))
    w = jnp.where(jnp.isfinite(w), w, 0)
    return cpu.computed_once(threats.masked(threat, w))
