"""Exact projections and linear maximisers on a norm ball cut by a box.

All functions take perturbations `[B, d]`, the box `low <= delta <= high` (with
`low <= 0 <= high`, infinite where there is no bound) and a radius `[B, 1]`.
"""

import jax
import jax.numpy as jnp

from jaxrobust.threats.norms import scaled


def largest_scale_l2(
    u: jax.Array, low: jax.Array, high: jax.Array, radius: jax.Array
) -> jax.Array:
    """Return clip(s u, low, high) for the largest s >= 0 whose l2 norm is <= radius.

    Both the projection onto ball and box (KKT: delta = clip(u / (1 + lambda))) and the
    maximiser of <u, delta> (KKT: delta = clip(u / mu)) have this form. Found by
    the active-set iteration: scale the free coordinates to fill the radius, fix those
    that reach the box, repeat. As s only grows, what is fixed stays fixed, and it ends
    after at most d rounds. What is carried is the set and not s, which may overflow.
    """

    def fill(is_free: jax.Array) -> jax.Array:
        free = jnp.where(is_free, u, 0)
        fixed = jnp.where(is_free, 0, jnp.where(u > 0, high, low))
        left = radius**2 - jnp.sum(fixed**2, -1, keepdims=True)
        direction, _ = scaled(free)
        # Not `norm`: XLA rounds another order of operations differently.
        size = jnp.sqrt(jnp.maximum(jnp.sum(direction**2, -1, keepdims=True), 1))
        # No sqrt at 0, where its derivative is NaN; of a radius of 0 the slope is 1.
        reach = jnp.sqrt(jnp.where(left > 0, left, 1))
        reach = jnp.where(left > 0, reach, jnp.where(radius > 0, 0, radius))
        return jnp.where(is_free, reach / size * direction, fixed)

    def release(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        is_free, _ = carry
        filled = fill(is_free)
        kept = is_free & (filled >= low) & (filled <= high)
        return kept, jnp.any(kept != is_free, -1)

    everything = jnp.ones_like(u, bool)
    is_free, _ = jax.lax.while_loop(
        lambda carry: jnp.any(carry[1]), release, (everything, everything[:, 0])
    )
    return jnp.clip(fill(is_free), low, high)


def project_l2(
    u: jax.Array, low: jax.Array, high: jax.Array, radius: jax.Array
) -> jax.Array:
    """Return the point of ball and box that is nearest to `u`."""
    clipped = jnp.clip(u, low, high)
    is_inside = jnp.sum(clipped**2, -1, keepdims=True) <= radius**2
    return jnp.where(is_inside, clipped, largest_scale_l2(u, low, high, radius))


def project_l1(
    u: jax.Array, low: jax.Array, high: jax.Array, radius: jax.Array
) -> jax.Array:
    """Return the point of ball and box that is nearest to `u`.

    KKT: |delta_i| = clip(|u_i| - lambda, 0, room_i); the sum falls with lambda and is
    piecewise linear. Bisection brackets lambda by two neighbouring floating-point
    numbers, in between linear equations give the rest.
    """
    magnitude = jnp.abs(u)
    room = jnp.where(u > 0, high, -low)

    def kept(multiplier: jax.Array) -> jax.Array:
        return jnp.clip(magnitude - multiplier, 0, room)

    def total(delta: jax.Array) -> jax.Array:
        return jnp.sum(delta, -1, keepdims=True)

    # Non-negative numbers are in the order of their bits: however much larger |u| is than
    # lambda, as many halvings as there are bits reach its neighbours.
    kind = jnp.int64 if u.dtype == jnp.float64 else jnp.int32

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]):
        below, above = bracket
        middle = below + (above - below) // 2
        kept_there = kept(jax.lax.bitcast_convert_type(middle, u.dtype))
        is_too_large = total(kept_there) > radius
        return (
            jnp.where(is_too_large, middle, below),
            jnp.where(is_too_large, above, middle),
        )

    largest = jnp.max(magnitude, -1, keepdims=True) + jnp.zeros_like(radius)
    above = jax.lax.bitcast_convert_type(largest, kind)
    num_bits = jnp.finfo(u.dtype).bits - 1
    _, above = jax.lax.fori_loop(0, num_bits, halve, (jnp.zeros_like(above), above))
    # |u| - lambda = (|u| - above) + rise: no digits are lost where |u| is large.
    base = magnitude - jax.lax.bitcast_convert_type(above, u.dtype)
    delta = _rise_to(base, room, radius)
    # What rounding leaves of the sum beyond the radius is scaled away.
    size = total(delta)
    delta = delta * jnp.where(size > radius, radius / jnp.where(size > 0, size, 1), 1)
    inside = kept(jnp.zeros_like(radius))
    return jnp.sign(u) * jnp.where(total(inside) <= radius, inside, delta)


def _rise_to(base: jax.Array, room: jax.Array, radius: jax.Array) -> jax.Array:
    """Return clip(base + rise, 0, room) with a sum of `radius`, where base > 0 can rise.

    The sum is concave in the rise: Newton's iteration never passes the solution.
    """

    def risen(rise: jax.Array) -> jax.Array:
        return jnp.clip(jnp.where(base >= 0, base + rise, 0), 0, room)

    def newton(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rise, _ = carry
        can_rise = (base >= 0) & (base + rise < room)
        count = jnp.sum(can_rise, -1, keepdims=True, dtype=base.dtype)
        slack = radius - jnp.sum(risen(rise), -1, keepdims=True)
        grown = rise + jnp.maximum(slack, 0) / jnp.maximum(count, 1)
        # Growth within rounding is dropped, so that an example does not change while others
        # are unfinished.
        is_open = (count > 0) & (slack > 1e-6 * radius)
        return jnp.where(is_open, grown, rise), is_open & (grown > rise)

    start = jnp.zeros_like(radius)
    rise, _ = jax.lax.while_loop(
        lambda carry: jnp.any(carry[1]), newton, newton((start, start > 0))
    )
    return risen(rise)


def fill_l1(
    grad: jax.Array, low: jax.Array, high: jax.Array, radius: jax.Array
) -> jax.Array:
    """Return the maximiser of <grad, delta> over ball and box: a fractional knapsack.

    The budget goes to the coordinate of the largest gradient until it reaches the
    box, then to the next (Croce & Hein 2021, arXiv:2103.01208, Proposition 3).
    """
    room = jnp.where(grad > 0, high, jnp.where(grad < 0, -low, 0))
    room = jnp.minimum(room, radius)
    order = jnp.argsort(-jnp.abs(grad), axis=-1)
    sorted_room = jnp.take_along_axis(room, order, -1)
    spent = jnp.cumsum(sorted_room, -1) - sorted_room
    taken = jnp.clip(radius - spent, 0, sorted_room)
    back = jnp.argsort(order, axis=-1)
    return jnp.sign(grad) * jnp.take_along_axis(taken, back, -1)
