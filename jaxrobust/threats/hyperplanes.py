"""The nearest point of a hyperplane within a box, for each norm.

All functions solve, for every example and in closed form up to a search in one dimension,

    min ||delta||_p   subject to   <w, delta> = gain,   low <= delta <= high

(Croce & Hein 2020, arXiv:1907.02044, eq. (4) and section 2.2). `w` is `[..., d]`, `gain`
`[..., 1]` of either sign, `low <= 0 <= high` `[..., d]` with infinities where there is
no bound. Where the box holds no point of the hyperplane, the corner of the box that comes
nearest to it is returned; where `w` is zero or the gain NaN, zero.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust.threats.norms import scaled
from jaxrobust.types import Array

# Coordinates whose slope is this much smaller than the largest one are left alone: their
# squares would leave the range of float32, and their effect is far below its precision.
_NEGLIGIBLE = 1e-18


def nearest_linf(w: jax.Array, gain: jax.Array, low: jax.Array, high: jax.Array):
    """Return the solution for p = infinity: clip(s sign(w), low, high)."""
    w, gain = _normalize(w, gain)
    return _fill_along(w, jnp.sign(w), gain, low, high)


def nearest_l2(w: jax.Array, gain: jax.Array, low: jax.Array, high: jax.Array):
    """Return the solution for p = 2: clip(s w, low, high), by KKT."""
    w, gain = _normalize(w, gain)
    return _fill_along(w, w, gain, low, high)


def nearest_l1(w: jax.Array, gain: jax.Array, low: jax.Array, high: jax.Array):
    """Return the solution for p = 1: coordinates of the largest |w| first, to the box."""
    w, gain = _normalize(w, gain)
    room, capacity = _limits(w, low, high)
    order = jnp.argsort(-jnp.abs(w), axis=-1)
    capacity = jnp.minimum(capacity, gain)
    in_order = jnp.take_along_axis(capacity, order, -1)
    filled = jnp.cumsum(in_order, -1) - in_order
    taken = jnp.clip(gain - filled, 0, in_order)
    taken = jnp.take_along_axis(taken, jnp.argsort(order, axis=-1), -1)
    size = jnp.minimum(taken / jnp.where(w != 0, jnp.abs(w), 1), room)
    return jnp.sign(w) * size


def geometry_of(threat: Any) -> tuple[Callable[..., Array], float]:
    """Return the projection onto a hyperplane and the order of the dual norm."""
    order = threat.order
    for known, nearest, dual_order in (
        (jnp.inf, nearest_linf, 1),
        (2, nearest_l2, 2),
        (1, nearest_l1, jnp.inf),
    ):
        if order == known:
            return nearest, dual_order
    raise TypeError(
        "Projections onto hyperplanes are known in the norms l_inf, l_2 and l_1, "
        f"threat.order = inf, 2 or 1, not for threat={threat!r} of order={order!r}: use "
        "another attack, e.g. PGD."
    )


def _fill_along(w, u, gain, low, high) -> jax.Array:
    """Return clip(s u, low, high) for the s >= 0 at which <w, clip(s u)> = gain.

    `u` has the signs of `w`. The product grows with s, concave and piecewise linear:
    Newton's iteration from s = 0 never passes the solution and ends after at most d
    rounds, in practice a few; without bounds the first is exact. Unlike the sort
    of the reference implementation it takes time linear in d.
    """
    size = jnp.abs(u)
    room, capacity = _limits(w, low, high)
    slope = jnp.abs(w) * size

    def newton(s: jax.Array) -> jax.Array:
        is_free = (size > 0) & (s * size < room)
        at_bound = jnp.sum(jnp.where(is_free, 0, capacity), -1, keepdims=True)
        rate = jnp.sum(jnp.where(is_free, slope, 0), -1, keepdims=True)
        grown = (gain - at_bound) / jnp.where(rate > 0, rate, 1)
        # Growth within rounding is dropped, so that an example does not change while
        # others are unfinished.
        return jnp.where((rate > 0) & (grown > s * (1 + 1e-6)), grown, s)

    def is_unfinished(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        s, previous = carry
        return jnp.any(s > previous)

    start = jnp.zeros_like(gain + capacity[..., :1])
    s, _ = jax.lax.while_loop(
        is_unfinished,
        lambda carry: (newton(carry[0]), carry[0]),
        (newton(start), start),
    )
    is_beyond = jnp.sum(capacity, -1, keepdims=True) <= gain
    size = jnp.where(is_beyond, room, jnp.minimum(s * size, room))
    return jnp.where(u != 0, jnp.sign(u) * size, 0)


def _normalize(w: jax.Array, gain: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scale to max |w| = 1 and turn `w` so that the gain is at least 0."""
    w, scale = scaled(w)
    w = jnp.where(jnp.abs(w) < _NEGLIGIBLE, 0, w)
    gain = jnp.where(jnp.isnan(gain), 0, gain)
    return jnp.where(gain < 0, -w, w), jnp.abs(gain / scale)


def _limits(w: jax.Array, low: jax.Array, high: jax.Array):
    """Return how far each coordinate can move along `w`, and what that gains."""
    room = jnp.where(w > 0, high, jnp.where(w < 0, -low, 0))
    return room, jnp.where(w != 0, jnp.abs(w) * room, 0)
