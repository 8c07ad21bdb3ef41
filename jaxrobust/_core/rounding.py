"""Rounding that does not leave a ball: numbers of half precision are far apart."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrobust._core import batching

# Tried in this order, the last that fits is kept.
_FACTORS = (*(1 - 2.0**-k for k in range(2, 10)), 1.0)


def is_narrow(dtype: jnp.dtype) -> bool:
    """Whether numbers of this type are coarser than float32."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def nearest(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Return the numbers of `dtype` that are nearest to `x`, in the type of `x`.

    XLA may drop a conversion to half precision and back; what is said to reduce the
    precision it keeps.
    """
    info = jnp.finfo(dtype)
    rounded = jax.lax.reduce_precision(x, info.nexp, info.nmant)
    if info.bits < 32 and float(info.tiny) > float(jnp.finfo(x.dtype).tiny):
        smallest = float(info.tiny) * 2.0**-info.nmant  # float16 below its normal range
        steps = jnp.round(x / smallest) * smallest
        rounded = jnp.where(jnp.abs(x) < float(info.tiny), steps, rounded)
    return rounded


def bounds_inwards(lower: ArrayLike, upper: ArrayLike, dtype: jnp.dtype):
    """Return the smallest and the largest number of `dtype` between two bounds."""
    lower, upper = jnp.asarray(lower), jnp.asarray(upper)
    low, high = lower.astype(dtype), upper.astype(dtype)
    infinity = jnp.asarray(jnp.inf, dtype)
    low = jnp.where(low.astype(lower.dtype) < lower, jnp.nextafter(low, infinity), low)
    return low, jnp.where(
        high.astype(upper.dtype) > upper, jnp.nextafter(high, -infinity), high
    )


def shifted_inwards(x: jax.Array, shift: jax.Array) -> jax.Array:
    """Return x + shift, at most |shift| away from x as float arithmetic sees it."""
    wide = x.astype(shift.dtype)
    moved = (wide + shift).astype(x.dtype)
    exceeds = jnp.abs(moved.astype(shift.dtype) - wide) > jnp.abs(shift)
    return jnp.where(exceeds, jnp.nextafter(moved, x), moved)


def drawn_in(
    x_adv: jax.Array,
    x: jax.Array,
    dtype: jnp.dtype,
    is_inside: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Return a point between `x_adv` and `x` that is inside a ball once it is rounded.

    Most of the perturbation is kept: of some factors the largest that will do, else
    every coordinate is rounded towards `x`.

    Args:
      x_adv: A point in the ball, in float32.
      x: The centre, numbers of `dtype` in float32.
      dtype: The type in which the point will be returned.
      is_inside: Whether rounded points are in the ball, `[B, ...] -> [B]`.

    Returns:
      Not rounded yet, so that small steps still add up.
    """
    delta, rounded = x_adv - x, nearest(x_adv, dtype)
    exceeds = jnp.abs(rounded - x) > jnp.abs(delta)
    inwards = jnp.nextafter(rounded.astype(dtype), x.astype(dtype)).astype(x.dtype)

    def shrink(kept: jax.Array, factor: jax.Array) -> tuple[jax.Array, None]:
        point = x + factor * delta
        fits = is_inside(nearest(point, dtype))
        return batching.where(fits, point, kept), None

    factors = jnp.asarray(_FACTORS, x.dtype)
    return jax.lax.scan(shrink, jnp.where(exceeds, inwards, rounded), factors)[0]
