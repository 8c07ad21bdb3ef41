"""How the outer problem is differentiated: at the parameters where it is worst nearby."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxrobust._core import pytree
from jaxrobust._core.representation import concise


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class AWP:
    """Adversarial weight perturbation: the gradient at w + gamma ||w_l|| g_l / ||g_l||.

    Wu et al. 2020, arXiv:2004.05884, eqs. (7), (8) and (10), one step: g is the gradient of
    the same loss at the same attacked inputs, and each leaf w_l with more than one axis
    (kernels, not biases or scales) moves uphill by gamma times its own norm. The optimiser
    then steps from w. Costs a second gradient and no attack; the batch statistics are those
    of the perturbed model, as in the published code.

    Warm-up epochs without AWP are not part of it: a gradient does not know the step.

    Args:
      gamma: Length of the perturbation in units of ||w_l||, at least 0. The authors have
        0.01 for PGD training and 0.005 for TRADES.

    Raises:
      ValueError: If gamma is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> def loss_fn(params):
      ...     return jnp.sum(params["w"] ** 2) + params["b"], {}
      >>> params = {"w": jnp.array([[3.0, 4.0]]), "b": jnp.float32(1.0)}
      >>> (loss, aux), grads = AWP(gamma=0.5)(loss_fn, params)
      >>> print(loss, grads["w"], grads["b"])
      57.25 [[ 9. 12.]] 1.0
    """

    gamma: ArrayLike = 0.005

    __repr__ = concise

    def __post_init__(self):
        _check(self, "gamma")

    def __call__(self, loss_fn: Callable, params: Any) -> tuple[tuple[Any, Any], Any]:
        """Return ((loss, aux), grads) at the perturbed parameters."""
        grads, _ = jax.grad(loss_fn, has_aux=True)(params)

        def perturbed(w, g):
            if w.ndim < 2:
                return w
            size = optax.tree.norm(w) / _norm(g)
            return w + (self.gamma * size * g).astype(w.dtype)

        worst = jax.tree.map(perturbed, params, grads)
        return jax.value_and_grad(loss_fn, has_aux=True)(worst)


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class SAM:
    """Sharpness-aware minimisation: the gradient at w + rho g / ||g||.

    Foret et al. 2021, arXiv:2010.01412, eq. (2), for p = 2: g is the gradient of the same
    loss at the same attacked inputs, and the norm that of all parameters together. The
    optimiser then steps from w. Costs a second gradient and no attack.

    Args:
      rho: Length of the perturbation, at least 0.

    Raises:
      ValueError: If rho is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> def loss_fn(params):
      ...     return jnp.sum(params**2), {}
      >>> (loss, aux), grads = SAM(rho=2.5)(loss_fn, jnp.array([3.0, 4.0]))
      >>> print(loss, grads)
      56.25 [ 9. 12.]
    """

    rho: ArrayLike = 0.05

    __repr__ = concise

    def __post_init__(self):
        _check(self, "rho")

    def __call__(self, loss_fn: Callable, params: Any) -> tuple[tuple[Any, Any], Any]:
        """Return ((loss, aux), grads) at the perturbed parameters."""
        grads, _ = jax.grad(loss_fn, has_aux=True)(params)
        scale = self.rho / _norm(grads)
        worst = jax.tree.map(
            lambda w, g: w + (scale * g).astype(w.dtype), params, grads
        )
        return jax.value_and_grad(loss_fn, has_aux=True)(worst)


def _norm(grads: Any) -> jax.Array:
    """Return the norm of all leaves together; 1 where it is 0, as there is no direction."""
    norm = optax.tree.norm(grads)
    return jnp.where(norm > 0, norm, 1)


def _check(gradient: Any, name: str) -> None:
    value = getattr(gradient, name)
    if isinstance(value, int | float) and not 0 <= value < math.inf:
        raise ValueError(
            f"{type(gradient).__name__}({name}={value}): a finite number of at least 0 is "
            "needed."
        )
