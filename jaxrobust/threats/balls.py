"""Threat models: l_p balls around the input, cut by data bounds and a mask.

A threat is part of the problem, not of the attack: it says what the adversary may do
(Delta in the lecture's max over delta in Delta), and every attack is held to it. All
fields are traced data, so a new `eps` compiles nothing and `jax.vmap` over `eps` works.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrobust._core import batching, pytree, rounding
from jaxrobust.threats import _ball, geometry
from jaxrobust.threats.box import apply_mask, bounds_like, room


@pytree.register
class Linf(_ball.Ball):
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

    order = math.inf

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
        uniform = functools.partial(jax.random.uniform, minval=-1.0)
        noise = batching.expand(self.eps, x) * batching.draw(uniform, keys, x)
        return self.project((x + noise).astype(x.dtype), x)


@pytree.register
class L2(_ball.Ball):
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

    order = 2.0

    def project(self, x_adv: jax.Array, x: jax.Array) -> jax.Array:
        """Return the nearest feasible point (exact: KKT multiplier by active sets)."""
        return _ball.project(geometry.project_l2, self, x_adv, x)

    def steepest(self, grad: jax.Array, x: jax.Array, step_size: ArrayLike):
        """Return step_size * grad / ||grad||_2, bent along the box where it is hit."""
        grad = batching.unit_max(grad)
        return _ball.steepest(geometry.largest_scale_l2, self, grad, x, step_size)

    def sample(self, keys: jax.Array, x: jax.Array) -> jax.Array:
        """Return a point uniform in the ball, projected."""
        return _ball.sample(jax.random.normal, self, keys, x)


@pytree.register
class L1(_ball.Ball):
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

    order = 1.0

    def project(self, x_adv: jax.Array, x: jax.Array) -> jax.Array:
        """Return the nearest feasible point (exact: KKT multiplier by bisection)."""
        return _ball.project(geometry.project_l1, self, x_adv, x)

    def steepest(self, grad: jax.Array, x: jax.Array, step_size: ArrayLike):
        """Return the sparse maximiser of <grad, delta> over ball and box."""
        return _ball.steepest(geometry.fill_l1, self, grad, x, step_size)

    def sample(self, keys: jax.Array, x: jax.Array) -> jax.Array:
        """Return a point uniform in the ball, projected."""
        return _ball.sample(jax.random.laplace, self, keys, x)
