"""The norms of examples: along the last axis, of order 1, 2 or infinity."""

import jax
import jax.numpy as jnp


def norm(u: jax.Array, order: float) -> jax.Array:
    """Return the l_1, l_2 or l_inf norm along the last axis."""
    if order == 2:
        return jnp.sqrt(jnp.sum(u**2, -1))
    size = jnp.abs(u)
    return jnp.max(size, -1) if order == jnp.inf else jnp.sum(size, -1)


def safe_norm(u: jax.Array, order: float) -> jax.Array:
    """Return the same; no square overflows or vanishes."""
    unit, largest = scaled(u)
    return largest[..., 0] * norm(unit, order)


def scaled(u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return `u` with a largest magnitude of 1, and its own `[..., 1]`; of zero 0 and 1."""
    largest = jnp.max(jnp.abs(u), -1, keepdims=True)
    largest = jnp.where(largest > 0, largest, 1)
    return u / largest, largest
