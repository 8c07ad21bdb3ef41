"""Windows of the Square attack and what it writes into them, for one example.

Andriushchenko et al. 2020, arXiv:1912.00049, Algorithms 2 and 3; the form for l_1 is that
of Croce & Hein 2021, arXiv:2103.01208. Sizes and positions are traced, because each example
has its own: a window is a mask made of comparisons of indices, and all shapes are static.

An image is `[H, W, C]`; `p` is 1 or 2, the norm of the ball.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.types import Array

Shape = tuple[int, ...]  # (H, W, C)


def sides(fraction: Array, shape: Shape) -> tuple[Array, Array]:
    """Return height and width of the window that covers a fraction of the pixels.

    A square where it fits (the paper); where an image is too narrow for it, all of that
    axis and more of the other, so that the area is kept.
    """
    height, width, _ = shape
    area = fraction * height * width
    side = jnp.sqrt(area)
    return (
        jnp.clip(jnp.round(jnp.maximum(side, area / width)), 1, height).astype(int),
        jnp.clip(jnp.round(jnp.maximum(side, area / height)), 1, width).astype(int),
    )


def place(uniform: Array, length: int, side: Array) -> Array:
    """Return the indices of an axis relative to where a window starts, `[length]`.

    `uniform` in [0, 1) chooses among the `length - side + 1` places. (The reference
    implementation never takes the last one.)
    """
    places = jnp.asarray(length - side + 1, uniform.dtype)
    start = jnp.floor(uniform * places).astype(int)
    return jnp.arange(length) - start


def inside(rows: Array, columns: Array, height: Array, width: Array) -> Array:
    """Return the mask `[H, W]` of the window, from indices relative to its corner."""
    row_inside = (rows >= 0) & (rows < height)
    column_inside = (columns >= 0) & (columns < width)
    return row_inside[:, None] & column_inside[None, :]


def signs(uniform: Array) -> Array:
    """Return -1 or 1 for each number in [0, 1)."""
    return jnp.where(uniform < 0.5, -1.0, 1.0)


def stripes(key: Array, shape: Shape) -> Array:
    """Return one random sign for each column and channel, `[1, W, C]` (l_inf start)."""
    return signs(jax.random.uniform(key, (1, *shape[1:])))


def square(key: Array, fraction: Array, shape: Shape) -> Array:
    """Return a random window of one random sign for each channel, `[H, W, C]` (l_inf)."""
    uniform = jax.random.uniform(key, (2 + shape[2],))
    height, width = sides(fraction, shape)
    rows = place(uniform[0], shape[0], height)
    columns = place(uniform[1], shape[1], width)
    mask = inside(rows, columns, height, width)
    return jnp.where(mask[:, :, None], signs(uniform[2:])[None, None, :], 0)


def mass(delta: Array, p: int, axis=(0, 1)) -> Array:
    """Return the sum of |delta|^p, by default over the pixels of each channel."""
    return jnp.sum(jnp.abs(delta) ** p, axis=axis, keepdims=True)


def normalize(delta: Array, p: int, axis=(0, 1)) -> Array:
    """Scale to a norm of 1, by default for each channel; zero stays zero."""
    total = mass(delta, p, axis)
    return delta / jnp.where(total > 0, total, 1) ** (1 / p)


def bump(rows: Array, columns: Array, height, width, is_transposed, p: int) -> Array:
    """Return the paper's eta on a window: two pyramids of opposite sign, `[H, W]`.

    A pyramid is a sum of boxes around its centre, box k of half width k and of height
    1 / (k + 1)^2, or 1 / (k + 1)^4 for l_1. A pixel at distance n from the centre lies in
    the boxes k >= n, so that its value is a tail of that sum.

    Args:
      rows: Indices relative to the window's corner, `[H]`.
      columns: The same for the columns, `[W]`.
      height: Of the window.
      width: Of the window.
      is_transposed: Whether the window is halved left and right, not above and below.
      p: 1 or 2.
    """
    terms = 1 / np.arange(1, max(len(rows), len(columns)) + 2) ** {1: 4.0, 2: 2.0}[p]
    tail = jnp.asarray(np.append(np.cumsum(terms[::-1])[::-1], 0), jnp.float32)
    i, j = jnp.broadcast_arrays(rows[:, None], columns[None, :])
    u, v = jnp.where(is_transposed, j, i), jnp.where(is_transposed, i, j)
    length = jnp.where(is_transposed, width, height)
    across = jnp.where(is_transposed, height, width)
    is_first = u < length // 2
    half = jnp.where(is_first, length // 2, length - length // 2)
    u = jnp.where(is_first, u, u - length // 2)
    distance = jnp.maximum(jnp.abs(u - half // 2), jnp.abs(v - across // 2))
    num_boxes = jnp.maximum(half // 2, across // 2) + 1
    pyramid = tail[jnp.minimum(distance, num_boxes)] - tail[num_boxes]
    pyramid = jnp.where(inside(rows, columns, height, width), pyramid, 0)
    halves = (jnp.where(is_first, pyramid, 0), jnp.where(is_first, 0, pyramid))
    return normalize(normalize(halves[0], p) - normalize(halves[1], p), p)


def tiles(key: Array, shape: Shape, p: int) -> Array:
    """Return the start for l_2 and l_1: bumps of random sign and orientation, `[H, W, C]`.

    The tiles are a fifth of the image wide and high (at least a pixel); as many as fit are
    laid around the middle, five in a row for the images of the paper.
    """
    (height, down), (width, right) = (_fifth(length) for length in shape[:2])
    upright, transposed = (
        bump(jnp.arange(height), jnp.arange(width), height, width, turned, p)
        for turned in _turns(height, width)
    )
    uniform = jax.random.uniform(key, (down, 1, right, 1, 1 + shape[2]))
    is_transposed = uniform[..., :1] < 0.5
    blocks = jnp.where(
        is_transposed,
        transposed[None, :, None, :, None],
        upright[None, :, None, :, None],
    ) * signs(uniform[..., 1:])
    laid = blocks.reshape(down * height, right * width, shape[2])
    margins = [_around(shape[0], down * height), _around(shape[1], right * width)]
    return jnp.pad(laid, [*margins, (0, 0)])


def move_mass(key: Array, fraction: Array, delta: Array, eps: Array, p: int) -> Array:
    """Return `delta` with the mass of two windows moved to the first of them (l_2, l_1).

    Algorithm 3: the first window gets its old content + a bump of random sign, scaled in
    each channel to the mass of both windows and a share of what is left of eps^p; the
    second gets zero. For l_1 it gets as many times more as there are channels (as in the
    reference implementation): the projection takes the excess from all coordinates of the
    image alike, so that mass can go from one channel to another, to few large coordinates.
    """
    shape = delta.shape
    uniform = jax.random.uniform(key, (5 + shape[2],))
    height, width = (
        jnp.minimum(_odd(side), length)
        for side, length in zip(sides(fraction, shape), shape[:2], strict=True)
    )
    rows, rows_2 = (place(u, shape[0], height) for u in uniform[0:2])
    columns, columns_2 = (place(u, shape[1], width) for u in uniform[2:4])
    first = inside(rows, columns, height, width)[:, :, None]
    second = inside(rows_2, columns_2, height, width)[:, :, None]

    is_transposed = _turn(uniform[4] < 0.5, height, width)
    eta = bump(rows, columns, height, width, is_transposed, p)[:, :, None]
    old = normalize(jnp.where(first, delta, 0), p)
    direction = normalize(old + eta * signs(uniform[5:])[None, None, :], p)

    unused = jnp.maximum(eps**p - mass(delta, p, axis=(0, 1, 2)), 0)
    moved = mass(jnp.where(first | second, delta, 0), p)
    excess = shape[2] if p == 1 else 1
    new = direction * (excess * (unused / shape[2] + moved)) ** (1 / p)
    return jnp.where(first, new, jnp.where(second, 0, delta))


def _odd(side: Array) -> Array:
    """Return the side that the reference takes for a bump: odd, at least 3."""
    return jnp.maximum(side, 3) // 2 * 2 + 1


def _turn(coin, height, width):
    """Return whether to halve left and right; a row or a column has no choice."""
    return jnp.where(height == 1, True, jnp.where(width == 1, False, coin))


def _turns(height: int, width: int) -> tuple[Array, Array]:
    return _turn(False, height, width), _turn(True, height, width)


def _fifth(length: int) -> tuple[int, int]:
    """Return the side of a tile and the number of tiles along an axis."""
    side = max(length // 5, 1)
    return side, length // side


def _around(length: int, covered: int) -> tuple[int, int]:
    before = (length - covered) // 2
    return before, length - covered - before
