"""Square for l_1 in NumPy and float64, one example at a time, for images [C, H, W].

Written from the papers (Andriushchenko et al. 2020, arXiv:1912.00049; Croce & Hein 2021,
arXiv:2103.01208) and the behaviour of the authors' implementation in AutoAttack; shares no
code with the library. Data are in [0, 1].
"""

import math

import numpy as np

LIMITS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def pyramid(height, width):
    """Boxes around the centre, added one by one; mass 1."""
    delta = np.zeros((height, width))
    row, column = height // 2, width // 2
    for k in range(max(row, column) + 1):
        box = delta[max(row - k, 0) : row + k + 1, max(column - k, 0) : column + k + 1]
        box += 1 / (k + 1) ** 4
    return delta / delta.sum()


def eta(side, rng):
    """A positive pyramid over a negative one, or beside it; mass 1."""
    half = side // 2
    delta = np.concatenate([pyramid(half, side), -pyramid(side - half, side)]) / 2
    return delta.T if rng.uniform() > 0.5 else delta


def project(delta, x, eps):
    """The nearest perturbation in the ball and in [0, 1], by bisection of the threshold."""
    room = np.where(delta > 0, 1 - x, x)

    def shrunk(threshold):
        return np.clip(np.abs(delta) - threshold, 0, room)

    low, high = 0.0, np.abs(delta).max()
    if shrunk(0).sum() > eps:
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if shrunk(middle).sum() > eps else (low, middle)
        return np.sign(delta) * shrunk(high)
    return np.sign(delta) * shrunk(0)


def signs(channels, rng):
    """One sign for each channel."""
    return rng.choice([-1.0, 1.0], size=(channels, 1, 1))


def start(x, rng):
    """Tiles of bumps, a fifth of the image high."""
    channels, height, width = x.shape
    delta, side = np.zeros_like(x), height // 5
    first = (height - 5 * side) // 2
    for i in range(height // side):
        for j in range(width // side):
            top, left = first + i * side, first + j * side
            tile = delta[:, top : top + side, left : left + side]
            tile += (eta(side, rng) * signs(channels, rng))[
                :, : tile.shape[1], : tile.shape[2]
            ]
    return delta


def proposal(delta, eps, side, rng):
    """Move the mass of two windows into the first, times the number of channels."""
    channels, height, width = delta.shape

    def window():
        # The last place is never drawn.
        top, left = (int(rng.uniform(0, n - side)) for n in (height, width))
        return slice(None), slice(top, top + side), slice(left, left + side)

    first, second = window(), window()
    is_inside = np.zeros_like(delta, bool)
    is_inside[first] = is_inside[second] = True
    moved = np.abs(delta * is_inside).sum((1, 2), keepdims=True)
    unused = max(eps - np.abs(delta).sum(), 0)
    old = delta[first]
    old = old / (1e-12 + np.abs(old).sum((1, 2), keepdims=True))
    new = eta(side, rng) * signs(channels, rng) + old
    new = new / (1e-12 + np.abs(new).sum((1, 2), keepdims=True))
    delta = delta.copy()
    delta[second] = 0
    delta[first] = new * (unused / channels + moved) * channels
    return delta


def attack(margin, x, eps, num_queries, rng, p_init=0.8):
    """Return the point of the largest `margin(x_adv)` found; stops above 0."""
    best = x + project(start(x, rng), x, eps)
    best_margin = margin(best)
    for step in range(num_queries):
        if best_margin > 0:
            break
        fraction = p_init / 2 ** sum(step > limit for limit in LIMITS)
        side = max(round(math.sqrt(fraction * x[0].size)), 3)
        side += side % 2 == 0
        x_new = x + project(proposal(best - x, eps, side, rng), x, eps)
        value = margin(x_new)
        if value > best_margin:
            best, best_margin = x_new, value
    return best
