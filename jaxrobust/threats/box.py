"""Bounds and mask of a threat: where each coordinate may go, whatever the norm.

They follow from the members that `types.Threat` lists, and so are functions of any threat.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust._core import rounding


def room(threat: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return how far each coordinate may move down and up before bounds or mask."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    low = high = jnp.full_like(x, jnp.inf)
    if threat.bounds is not None:
        lower, upper = bounds_like(threat, x)
        # A point a rounding error outside the bounds has no room, not a negative one.
        low, high = jnp.maximum(x - lower, 0), jnp.maximum(upper - x, 0)
    return -masked(threat, low), masked(threat, high)


def bounds_like(threat: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the bounds in the shape and type of `x`; half precision rounds inwards."""
    assert threat.bounds is not None
    lower, upper = threat.bounds
    if rounding.is_narrow(x.dtype):
        lower, upper = rounding.bounds_inwards(lower, upper, x.dtype)
    return (
        jnp.broadcast_to(jnp.asarray(lower, x.dtype), x.shape),
        jnp.broadcast_to(jnp.asarray(upper, x.dtype), x.shape),
    )


def masked(threat: Any, u: jax.Array) -> jax.Array:
    """Return a perturbation or gradient, zero where the mask lets nothing move."""
    return apply_mask(threat, u, jnp.zeros_like(u))


def apply_mask(threat: Any, x_adv: jax.Array, x: jax.Array) -> jax.Array:
    """Return `x_adv` where the mask lets it differ from `x`, elsewhere `x`."""
    if threat.mask is None:
        return x_adv
    is_free = jnp.broadcast_to(jnp.asarray(threat.mask) != 0, x.shape)
    return jnp.where(is_free, x_adv, x)


def into_bounds(threat: Any, x_adv: jax.Array, x: jax.Array) -> jax.Array:
    """Return the point nearest to `x_adv` that bounds and mask allow, at any distance."""
    if threat.bounds is not None:
        x_adv = jnp.clip(x_adv, *bounds_like(threat, x))
    return apply_mask(threat, x_adv, x)
