"""Gradients estimated from the outputs of a model."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrobust import threats
from jaxrobust._core import batching, predictions
from jaxrobust.types import Array, LogitsFn, Loss, Threat


def estimate_gradient(
    loss: Loss,
    logits_fn: LogitsFn,
    x_adv: Array,
    y: Any,
    *,
    threat: Threat,
    keys: Array,
    num_samples: int,
    delta: ArrayLike,
    chunk_size: int | None = None,
) -> Array:
    """Return the mean of (L(x + delta v) - L(x - delta v)) / (2 delta) v over signs v.

    Spall 1992 (SPSA), in the form of Uesato et al. 2018, arXiv:1802.05666. Unbiased for a
    linear loss. The points are cut to the bounds, as a model need not accept others: of a
    coordinate that is at its bound, half of the gradient is found.

    Args:
      loss: Per-example loss.
      logits_fn: Pure function from inputs to logits `[B, C]`.
      x_adv: Where the gradient is taken, `[B, ...]`.
      y: What the loss takes.
      threat: Its bounds and its mask hold; coordinates that are masked get no gradient.
      keys: `[B]`; the signs of pair k come from `fold_in(key, k)`, whatever the chunks.
      num_samples: Number of evaluations, even.
      delta: Distance from `x_adv` in each coordinate, in the units of the data.
      chunk_size: Evaluations made at once, an even divisor of `num_samples`; None: all.

    Returns:
      `[B, ...]`, at least float32. A pair whose loss is not finite counts as zero.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> x, y = jnp.full((1, 1), 0.5), jnp.array([0])
      >>> print(estimate_gradient(
      ...     jr.losses.margin, lambda x: jnp.concatenate([0 * x, 3 * x], axis=1), x, y,
      ...     threat=jr.Linf(0.1), keys=jax.random.split(jax.random.key(0), 1),
      ...     num_samples=2, delta=0.25))
      [[3.]]
    """
    wide = x_adv.astype(jnp.promote_types(x_adv.dtype, jnp.float32))
    num_pairs = (num_samples if chunk_size is None else chunk_size) // 2

    def pair(k: Array) -> tuple[Array, Array]:
        """Return the signs of pair k and its two points."""
        draw = jax.vmap(lambda key: jax.random.rademacher(key, x_adv.shape[1:]))
        sign = draw(batching.fold_in(keys, k)).astype(wide.dtype)
        sign = threats.masked(threat, sign)
        points = jnp.stack([wide + delta * sign, wide - delta * sign])
        points = points.astype(x_adv.dtype)
        if threat.bounds is not None:
            points = jnp.clip(points, *threats.bounds_like(threat, points))
        return sign, points

    def chunk(total: Array, first: Array) -> tuple[Array, None]:
        sign, points = jax.vmap(pair)(first + jnp.arange(num_pairs))
        values = _losses(loss, logits_fn, points, y)  # [pairs, 2, B]
        slope = (values[:, 0] - values[:, 1]) / (2 * delta)
        slope = jnp.where(jnp.isfinite(slope), slope, 0)
        return total + jnp.einsum(
            "kb,kb...->b...", slope, sign, precision="highest"
        ), None

    starts = jnp.arange(0, num_samples // 2, num_pairs)
    total, _ = jax.lax.scan(chunk, jnp.zeros_like(wide), starts)
    return total / (num_samples // 2)


def _losses(loss: Loss, logits_fn: LogitsFn, points: Array, y: Any) -> Array:
    """Return the losses `[K, 2, B]` of points `[K, 2, B, ...]`, in one batch."""
    lead = points.shape[:3]
    logits = predictions.wide(logits_fn(points.reshape(-1, *points.shape[3:])))
    y = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (*lead[:2], *leaf.shape)).reshape(
            -1, *leaf.shape[1:]
        ),
        y,
    )
    return loss(logits, y).reshape(lead)
