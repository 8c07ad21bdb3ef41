"""Exact projections and linear maximisers on a norm ball cut by a box.

All functions take perturbations `[B, d]`, the box `low <= delta <= high` (with
`low <= 0 <= high`, infinite where there is no bound) and a radius `[B, 1]`.
"""

import jax
import jax.numpy as jnp


def largest_scale_l2(
    u: jax.Array, low: jax.Array, high: jax.Array, radius: jax.Array
) -> jax.Array:
    """Return clip(s u, low, high) for the largest s >= 0 whose l2 norm is <= radius.

    Both the projection onto ball and box (KKT: delta = clip(u / (1 + lambda))) and the
    maximiser of <u, delta> (KKT: delta = clip(u / mu)) have this form. Found by
    the active-set iteration: scale the free coordinates to fill the radius, fix those
    that reach the box, repeat. s only grows, so it ends after at most d rounds.
    """

    def round_(s: jax.Array) -> jax.Array:
        delta = jnp.clip(s * u, low, high)
        is_free = (s * u >= low) & (s * u <= high)
        free = _norm(jnp.where(is_free, u, 0))
        fixed = jnp.sum(jnp.where(is_free, 0, delta) ** 2, -1, keepdims=True)
        left = jnp.sqrt(jnp.maximum(radius**2 - fixed, 0))
        grown = left / jnp.where(free > 0, free, 1)
        # Growth within rounding cannot fix another coordinate in a way that matters. It is
        # dropped, so that an example does not change while others are unfinished.
        return jnp.where((free > 0) & (grown > s * (1 + 1e-6)), grown, s)

    def unfinished(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        s, previous = carry
        return jnp.any(s > previous)

    norm = _norm(u)
    start = radius / jnp.where(norm > 0, norm, 1)
    s, _ = jax.lax.while_loop(
        unfinished, lambda carry: (round_(carry[0]), carry[0]), (round_(start), start)
    )
    return jnp.clip(s * u, low, high)


def _norm(u: jax.Array) -> jax.Array:
    """Return the l2 norm `[B, 1]`; the squares neither overflow nor vanish."""
    largest = jnp.max(jnp.abs(u), -1, keepdims=True)
    scaled = u / jnp.where(largest > 0, largest, 1)
    return largest * jnp.sqrt(jnp.sum(scaled**2, -1, keepdims=True))


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
    piecewise linear. Bisection finds the piece, one linear equation the multiplier.
    """
    magnitude = jnp.abs(u)
    room = jnp.where(u > 0, high, -low)

    def kept(multiplier: jax.Array) -> jax.Array:
        return jnp.clip(magnitude - multiplier, 0, room)

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]):
        below, above = bracket
        middle = (below + above) / 2
        is_too_large = jnp.sum(kept(middle), -1, keepdims=True) > radius
        return jnp.where(is_too_large, middle, below), jnp.where(
            is_too_large, above, middle
        )

    bracket = (
        jnp.zeros_like(radius * magnitude[:, :1]),
        jnp.max(magnitude, -1, keepdims=True),
    )
    # 24 halvings reach the resolution of a float32 significand.
    below, above = jax.lax.fori_loop(0, 24, halve, bracket)
    is_moving = (magnitude > above) & (magnitude - above < room)
    slack = radius - jnp.sum(kept(above), -1, keepdims=True)
    count = jnp.maximum(jnp.sum(is_moving, -1, keepdims=True), 1)
    # |u| - multiplier = (|u| - above) + rise: no digits are lost where |u| is large.
    rise = jnp.clip(slack / count, 0, above - below)
    delta = jnp.clip((magnitude - above) + rise, 0, room)
    # The resolution of the bisection is relative to |u|: where |u| is far outside, what
    # remains of the sum beyond the radius is scaled away.
    total = jnp.sum(delta, -1, keepdims=True)
    delta = delta * jnp.where(
        total > radius, radius / jnp.where(total > 0, total, 1), 1
    )
    inside = kept(jnp.zeros_like(below))
    is_inside = jnp.sum(inside, -1, keepdims=True) <= radius
    return jnp.sign(u) * jnp.where(is_inside, inside, delta)


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
