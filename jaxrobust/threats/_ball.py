"""What the balls have in common: their fields and checks, and the way through the box."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrobust._core import batching, rounding
from jaxrobust._core.representation import concise, text
from jaxrobust.threats.box import into_bounds, masked, room
from jaxrobust.threats.norms import norm

Bounds = tuple[ArrayLike, ArrayLike] | None


@dataclasses.dataclass(frozen=True, repr=False)
class Ball(abc.ABC):
    """An l_p ball, cut by bounds and a mask; see `types.Threat`."""

    eps: ArrayLike
    bounds: Bounds = (0.0, 1.0)
    mask: ArrayLike | None = None

    __repr__ = concise

    def __post_init__(self):
        _check(self)

    @property
    @abc.abstractmethod
    def order(self) -> float:
        """The p of the norm."""

    @abc.abstractmethod
    def project(self, x_adv: jax.Array, x: jax.Array) -> jax.Array:
        """Return the nearest feasible point."""

    @abc.abstractmethod
    def steepest(
        self, grad: jax.Array, x: jax.Array, step_size: ArrayLike
    ) -> jax.Array:
        """Return the maximiser of <grad, delta> of norm at most `step_size`."""

    @abc.abstractmethod
    def sample(self, keys: jax.Array, x: jax.Array) -> jax.Array:
        """Return a random feasible point for each example."""

    def distance(self, x_adv: jax.Array, x: jax.Array) -> jax.Array:
        """Return the norm of `x_adv - x` for each example, `[B]`."""
        return norm(_difference(x_adv, x), self.order)

    def with_eps(self, eps: ArrayLike) -> Self:
        """Return the same threat with another radius."""
        return dataclasses.replace(self, eps=eps)


def project(projection: Callable, threat: Ball, x_adv: jax.Array, x: jax.Array):
    """Apply a projection of `[B, d]` perturbations and return to a point in bounds."""
    low, high, radius = _box(threat, x, threat.eps)
    delta = projection(_difference(x_adv, x), low, high, radius).reshape(x.shape)
    wide = x.astype(delta.dtype)
    moved = wide + delta
    if rounding.is_narrow(x.dtype):
        moved = rounding.drawn_in(
            moved, wide, x.dtype, lambda z: threat.distance(z, wide) <= radius[:, 0]
        )
    return into_bounds(threat, moved.astype(x.dtype), x)


def steepest(maximiser: Callable, threat: Ball, grad: jax.Array, x: jax.Array, size):
    """Return the perturbation of a maximiser over `[B, d]` gradients."""
    low, high, radius = _box(threat, x, size)
    flat = batching.flatten(grad).astype(low.dtype)
    return maximiser(flat, low, high, radius).reshape(x.shape).astype(x.dtype)


def sample(distribution: Callable, threat: Ball, keys: jax.Array, x: jax.Array):
    """Scale noise of density exp(-|z|^p) to a point uniform in the l_p ball.

    The direction is noise / ||noise||_p, the radius eps * U^(1/d), with d the number of
    coordinates that the mask leaves free (Barthe et al. 2005, arXiv:math/0503650).
    """
    noise = batching.draw(distribution, keys, x)
    free = masked(threat, jnp.ones_like(noise))
    size = norm(batching.flatten(noise * free), threat.order)
    dimension = jnp.maximum(jnp.sum(batching.flatten(free), -1), 1)
    uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys)
    scale = uniform ** (1 / dimension) / jnp.where(size > 0, size, 1)
    delta = batching.expand(scale, x) * batching.expand(threat.eps, x) * (noise * free)
    return threat.project((x + delta).astype(x.dtype), x)


def _box(threat: Ball, x: jax.Array, size: ArrayLike) -> tuple[jax.Array, ...]:
    """Return the room below and above `[B, d]`, and the radius `[B, 1]`."""
    low, high = map(batching.flatten, room(threat, x))
    return low, high, batching.expand(size, low) + jnp.zeros_like(low[:, :1])


def _difference(x_adv: jax.Array, x: jax.Array) -> jax.Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return batching.flatten(x_adv.astype(wide) - x.astype(wide))


def _check(threat: Ball) -> None:
    """Reject impossible values; traced ones cannot be seen and pass."""
    name = type(threat).__name__
    if threat.eps is None or isinstance(threat.eps, str | bool):
        raise TypeError(
            f"{name}(eps={threat.eps!r}): eps must be a number, e.g. 8 / 255."
        )
    if _is_concrete(threat.eps):
        eps = np.asarray(threat.eps)
        if not np.all(eps >= 0):
            raise ValueError(
                f"{name}(eps={threat.eps}): eps must be at least 0; it is the radius of "
                "the ball, in the units of the data (8 / 255 for images in [0, 1]). "
                "Infinity means at whatever distance, for attacks that look for the "
                "nearest point."
            )
    bounds = threat.bounds
    is_pair = not isinstance(bounds, tuple | list) or len(bounds) == 2
    if isinstance(bounds, int | float) or not is_pair:
        raise ValueError(
            f"{name}(bounds={bounds}): a pair (lower, upper) is needed, or None for data "
            "without bounds."
        )
    if isinstance(bounds, tuple | list) and any(bound is None for bound in bounds):
        raise ValueError(
            f"{name}(bounds={bounds}): a side without a limit is written as infinity, "
            "e.g. bounds=(0, jnp.inf); bounds=None has no limit at all."
        )
    if not isinstance(bounds, tuple | list) or not all(map(_is_concrete, bounds)):
        return
    lower, upper = bounds
    lower, upper = np.asarray(lower), np.asarray(upper)
    # Here and there they may be equal: a pixel that is 1, where all may only grow.
    if not np.all(lower <= upper) or not np.any(lower < upper):
        raise ValueError(
            f"{name}(bounds={text(threat.bounds)}): the lower bound must be below the "
            "upper; give (lower, upper), or bounds=None for data without bounds."
        )


def _is_concrete(value: object) -> bool:
    if isinstance(value, jax.core.Tracer):
        return False
    return isinstance(value, int | float | np.ndarray | np.generic | jax.Array)
