"""Threat models: l_p balls around the input, cut by data bounds and a mask.

A threat is part of the problem, not of the attack: it says what the adversary may do
(Delta in the lecture's max over delta in Delta), and every attack is held to it. All
fields are traced data, so a new `eps` compiles nothing and `jax.vmap` over `eps` works.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrobust._core import batching, pytree, rounding
from jaxrobust._core.representation import concise
from jaxrobust.threats import geometry

Bounds = tuple[ArrayLike, ArrayLike] | None


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class Linf:
    """{x_adv : max_i |x_adv_i - x_i| <= eps, lower <= x_adv <= upper}.

    Goodfellow et al. 2015, arXiv:1412.6572. Projected points satisfy the inequality
    exactly in float32: where x + eps rounds outwards, the next number inwards is taken.

    Args:
      eps: Radius in the units of the data, a scalar or `[B]`; infinite for attacks that
        look for the nearest adversarial point at whatever distance (`FAB`).
      bounds: `(lower, upper)` of valid data, infinite where there is no limit; `None` for
        no bounds. Each a scalar, `[C]` along the last axis, the shape of one example, in
        which axes may be 1, or the same for each example, `[B, ...]`.
      mask: What may be perturbed (non-zero), in one of these shapes; `None`: all.

    Raises:
      ValueError: If `eps` is negative or NaN, or the bounds are out of order.

    Example:
      >>> import jax.numpy as jnp
      >>> threat = Linf(0.25)
      >>> print(threat.project(jnp.array([[0.9, -0.5]]), jnp.array([[0.5, 0.125]])))
      [[0.75 0.  ]]
    """

    eps: ArrayLike
    bounds: Bounds = (0.0, 1.0)
    mask: ArrayLike | None = None

    __repr__ = concise

    def __post_init__(self):
        _check(self)

    @property
    def order(self) -> float:
        """The p of the norm."""
        return math.inf

    def project(self, x_adv: jax.Array, x: jax.Array) -> jax.Array:
        """Return the nearest feasible point (exact: clipping each coordinate)."""
        eps = batching.expand(self.eps, x)
        low, high = (rounding.shifted_inwards(x, shift) for shift in (-eps, eps))
        if self.bounds is not None:
            lower, upper = bounds_like(self, x)
            low, high = jnp.maximum(low, lower), jnp.minimum(high, upper)
        return apply_mask(self, jnp.clip(x_adv, low, high), x)

    def steepest(self, grad: jax.Array, x: jax.Array, step_size: ArrayLike):
        """Return step_size * sign(grad), cut by bounds and mask."""
        delta = batching.expand(step_size, x) * jnp.sign(grad)
        return jnp.clip(delta, *room(self, x)).astype(x.dtype)

    def sample(self, keys: jax.Array, x: jax.Array) -> jax.Array:
        """Return x + Unif([-eps, eps]^d), projected."""
        noise = batching.expand(self.eps, x) * batching.draw(_uniform, keys, x)
        return self.project((x + noise).astype(x.dtype), x)

    def distance(self, x_adv: jax.Array, x: jax.Array) -> jax.Array:
        """Return the l_inf norm of `x_adv - x`, `[B]`."""
        return jnp.max(jnp.abs(_difference(x_adv, x)), axis=-1)

    def with_eps(self, eps: ArrayLike) -> "Linf":
        """Return the same threat with another radius."""
        return dataclasses.replace(self, eps=eps)


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class L2:
    """{x_adv : ||x_adv - x||_2 <= eps, lower <= x_adv <= upper}.

    Madry et al. 2018, arXiv:1706.06083. `project` is the exact Euclidean projection on
    ball and box, not scale-then-clip. The norm holds up to float32 rounding: one ulp
    of each coordinate and a relative 1e-6.

    Args:
      eps: Radius in the units of the data, a scalar or `[B]`; infinite for attacks that
        look for the nearest adversarial point at whatever distance (`FAB`).
      bounds: `(lower, upper)` of valid data, see `Linf`; `None` for no bounds.
      mask: What may be perturbed (non-zero), see `Linf`; `None`: all.

    Raises:
      ValueError: If `eps` is negative or NaN, or the bounds are out of order.

    Example:
      >>> import jax.numpy as jnp
      >>> threat = L2(1.0, bounds=None)
      >>> print(threat.project(jnp.array([[3.0, 4.0]]), jnp.zeros((1, 2))))
      [[0.6 0.8]]
    """

    eps: ArrayLike
    bounds: Bounds = (0.0, 1.0)
    mask: ArrayLike | None = None

    __repr__ = concise

    def __post_init__(self):
        _check(self)

    @property
    def order(self) -> float:
        """The p of the norm."""
        return 2.0

    def project(self, x_adv: jax.Array, x: jax.Array) -> jax.Array:
        """Return the nearest feasible point (exact: KKT multiplier by active sets)."""
        return _project_with(geometry.project_l2, self, x_adv, x)

    def steepest(self, grad: jax.Array, x: jax.Array, step_size: ArrayLike):
        """Return step_size * grad / ||grad||_2, bent along the box where it is hit."""
        grad = batching.unit_max(grad)
        return _steepest_with(geometry.largest_scale_l2, self, grad, x, step_size)

    def sample(self, keys: jax.Array, x: jax.Array) -> jax.Array:
        """Return a point uniform in the ball, projected."""
        return _sample_in_ball(self, 2, batching.draw(_normal, keys, x), keys, x)

    def distance(self, x_adv: jax.Array, x: jax.Array) -> jax.Array:
        """Return the l2 norm of `x_adv - x`, `[B]`."""
        return jnp.sqrt(jnp.sum(_difference(x_adv, x) ** 2, axis=-1))

    def with_eps(self, eps: ArrayLike) -> "L2":
        """Return the same threat with another radius."""
        return dataclasses.replace(self, eps=eps)


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class L1:
    """{x_adv : ||x_adv - x||_1 <= eps, lower <= x_adv <= upper}.

    Croce & Hein 2021, arXiv:2103.01208. `project` is the exact Euclidean projection on
    ball and box; `steepest` fills the coordinates of the largest gradients up to
    the box one after the other, so its sparsity adapts. The norm holds up to float32
    rounding: one ulp of each coordinate and a relative 1e-6.

    Args:
      eps: Radius in the units of the data, a scalar or `[B]`; infinite for attacks that
        look for the nearest adversarial point at whatever distance (`FAB`).
      bounds: `(lower, upper)` of valid data, see `Linf`; `None` for no bounds.
      mask: What may be perturbed (non-zero), see `Linf`; `None`: all.

    Raises:
      ValueError: If `eps` is negative or NaN, or the bounds are out of order.

    Example:
      >>> import jax.numpy as jnp
      >>> threat = L1(1.5)
      >>> print(threat.steepest(jnp.array([[3.0, 1.0, 2.0]]), jnp.zeros((1, 3)), 1.5))
      [[1.  0.  0.5]]
    """

    eps: ArrayLike
    bounds: Bounds = (0.0, 1.0)
    mask: ArrayLike | None = None

    __repr__ = concise

    def __post_init__(self):
        _check(self)

    @property
    def order(self) -> float:
        """The p of the norm."""
        return 1.0

    def project(self, x_adv: jax.Array, x: jax.Array) -> jax.Array:
        """Return the nearest feasible point (exact: KKT multiplier by bisection)."""
        return _project_with(geometry.project_l1, self, x_adv, x)

    def steepest(self, grad: jax.Array, x: jax.Array, step_size: ArrayLike):
        """Return the sparse maximiser of <grad, delta> over ball and box."""
        return _steepest_with(geometry.fill_l1, self, grad, x, step_size)

    def sample(self, keys: jax.Array, x: jax.Array) -> jax.Array:
        """Return a point uniform in the ball, projected."""
        return _sample_in_ball(self, 1, batching.draw(_laplace, keys, x), keys, x)

    def distance(self, x_adv: jax.Array, x: jax.Array) -> jax.Array:
        """Return the l1 norm of `x_adv - x`, `[B]`."""
        return jnp.sum(jnp.abs(_difference(x_adv, x)), axis=-1)

    def with_eps(self, eps: ArrayLike) -> "L1":
        """Return the same threat with another radius."""
        return dataclasses.replace(self, eps=eps)


def _check(threat: Linf | L2 | L1) -> None:
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
    if not np.all(np.asarray(lower) < np.asarray(upper)):
        raise ValueError(
            f"{name}(bounds={threat.bounds}): the lower bound must be below the upper; "
            "give (lower, upper), or bounds=None for data without bounds."
        )


def _is_concrete(value: object) -> bool:
    if isinstance(value, jax.core.Tracer):
        return False
    return isinstance(value, int | float | np.ndarray | np.generic | jax.Array)


def _difference(x_adv: jax.Array, x: jax.Array) -> jax.Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return batching.flatten(x_adv.astype(wide) - x.astype(wide))


def room(threat: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return how far each coordinate may move down and up before bounds or mask."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    low = high = jnp.full_like(x, jnp.inf)
    if threat.bounds is not None:
        lower, upper = bounds_like(threat, x)
        # A point a rounding error outside the bounds has no room, not a negative one.
        low, high = jnp.maximum(x - lower, 0), jnp.maximum(upper - x, 0)
    if threat.mask is not None:
        is_free = _is_free(threat, x)
        low, high = jnp.where(is_free, low, 0), jnp.where(is_free, high, 0)
    return -low, high


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


def _is_free(threat: Any, x: jax.Array) -> jax.Array:
    """Return the mask as booleans in the shape of `x`."""
    return jnp.broadcast_to(jnp.asarray(threat.mask) != 0, x.shape)


def apply_mask(threat: Any, x_adv: jax.Array, x: jax.Array) -> jax.Array:
    """Return `x_adv` where the mask lets it differ from `x`, elsewhere `x`."""
    if threat.mask is None:
        return x_adv
    return jnp.where(_is_free(threat, x), x_adv, x)


def into_bounds(threat: Any, x_adv: jax.Array, x: jax.Array) -> jax.Array:
    """Return the point nearest to `x_adv` that bounds and mask allow, at any distance."""
    if threat.bounds is not None:
        x_adv = jnp.clip(x_adv, *bounds_like(threat, x))
    return apply_mask(threat, x_adv, x)


def _project_with(projection, threat, x_adv: jax.Array, x: jax.Array) -> jax.Array:
    """Apply a projection of `[B, d]` perturbations and return to a point in bounds."""
    low, high = map(batching.flatten, room(threat, x))
    radius = batching.expand(threat.eps, low) + jnp.zeros_like(low[:, :1])
    delta = projection(_difference(x_adv, x), low, high, radius).reshape(x.shape)
    wide = x.astype(delta.dtype)
    moved = wide + delta
    if rounding.is_narrow(x.dtype):
        moved = rounding.drawn_in(
            moved, wide, x.dtype, lambda z: threat.distance(z, wide) <= radius[:, 0]
        )
    return into_bounds(threat, moved.astype(x.dtype), x)


def _steepest_with(maximiser, threat, grad: jax.Array, x: jax.Array, step_size):
    low, high = map(batching.flatten, room(threat, x))
    radius = batching.expand(step_size, low) + jnp.zeros_like(low[:, :1])
    flat = batching.flatten(grad).astype(low.dtype)
    return maximiser(flat, low, high, radius).reshape(x.shape).astype(x.dtype)


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1.0)


def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(key, shape)


def _laplace(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.laplace(key, shape)


def _sample_in_ball(threat: L2 | L1, p: int, noise: jax.Array, keys, x: jax.Array):
    """Scale noise of density exp(-|z|^p) to a point uniform in the l_p ball.

    The direction is noise / ||noise||_p, the radius eps * U^(1/d), with d the number of
    coordinates that the mask leaves free (Barthe et al. 2005, arXiv:math/0503650).
    """
    free = jnp.ones_like(noise)
    if threat.mask is not None:
        free = jnp.where(_is_free(threat, x), free, 0)
    flat = batching.flatten(noise * free)
    norm = jnp.sum(jnp.abs(flat) ** p, -1) ** (1 / p)
    dimension = jnp.maximum(jnp.sum(batching.flatten(free), -1), 1)
    uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys)
    scale = uniform ** (1 / dimension) / jnp.where(norm > 0, norm, 1)
    delta = batching.expand(scale, x) * batching.expand(threat.eps, x) * (noise * free)
    return threat.project((x + delta).astype(x.dtype), x)
