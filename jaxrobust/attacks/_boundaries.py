"""Decision boundaries of a classifier, linearised at a point."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import _batch, _hyperplanes, threats
from jaxrobust.types import Array, LogitsFn


def towards_target(logits_fn: LogitsFn, x_adv: Array, y: Any, threat: Any):
    """Return gap = z_t - z_y `[B]`, its gradient `[B, ...]` and the logits."""
    labels, targets = y

    def total(x_adv: Array):
        logits = logits_fn(x_adv).astype(jnp.float32)
        gap = _batch.take(logits, targets) - _batch.take(logits, labels)
        return jnp.sum(gap), (gap, logits)

    w, (gap, logits) = jax.grad(total, has_aux=True)(x_adv)
    return gap, _usable(w, threat), logits


def towards_any(logits_fn: LogitsFn, x_adv: Array, y: Array, threat: Any):
    """Return the same for the wrong class whose linearised boundary is nearest, eq. (7).

    The Jacobian of the C - 1 differences of logits: C - 1 gradients.
    """

    def logits_of(x_adv: Array) -> Array:
        return logits_fn(x_adv).astype(jnp.float32)

    logits, pullback = jax.vjp(logits_of, x_adv)
    num_classes = logits.shape[-1]
    others = (y[None] + jnp.arange(1, num_classes)[:, None]) % num_classes
    directions = jax.nn.one_hot(others, num_classes) - jax.nn.one_hot(
        y[None], num_classes
    )
    w = _usable(jax.vmap(lambda direction: pullback(direction)[0])(directions), threat)
    gaps = (
        jax.vmap(_batch.take, (None, 0))(logits, others) - _batch.take(logits, y)[None]
    )
    dual_norm = _hyperplanes.norm(
        w.reshape(*gaps.shape, -1), _hyperplanes.geometry_of(threat)[1]
    )
    distance = jnp.abs(gaps) / jnp.where(dual_norm > 0, dual_norm, 1)
    distance = jnp.where((dual_norm > 0) & jnp.isfinite(distance), distance, jnp.inf)
    nearest = jnp.argmin(distance, axis=0)
    chosen = jax.vmap(lambda values, i: values[i], (1, 0))
    return chosen(gaps, nearest), chosen(w, nearest), logits


def _usable(w: Array, threat: Any) -> Array:
    """Return the gradient in float32, zero where it is not finite or where masked."""
    w = w.astype(jnp.promote_types(w.dtype, jnp.float32))
    w = jnp.where(jnp.isfinite(w), w, 0)
    return _batch.computed_once(threats.apply_mask(threat, w, jnp.zeros_like(w)))
