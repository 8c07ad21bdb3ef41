"""How the outer problem is differentiated: at the parameters where it is worst nearby."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxrobust._core import checks, predictions, pytree
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
        checks.check_number(self.gamma, "AWP's gamma")

    def __call__(self, loss_fn: Callable, params: Any) -> tuple[tuple[Any, Any], Any]:
        """Return ((loss, aux), grads) at the perturbed parameters."""
        grads, _ = jax.grad(loss_fn, has_aux=True)(params)

        def perturbed(w, g):
            if w.ndim < 2:
                return w
            length = self.gamma * optax.tree.norm(predictions.wide(w))
            return _moved(w, length * _unit(g))

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
        checks.check_number(self.rho, "SAM's rho")

    def __call__(self, loss_fn: Callable, params: Any) -> tuple[tuple[Any, Any], Any]:
        """Return ((loss, aux), grads) at the perturbed parameters."""
        grads, _ = jax.grad(loss_fn, has_aux=True)(params)
        worst = jax.tree.map(lambda w, g: _moved(w, self.rho * g), params, _unit(grads))
        return jax.value_and_grad(loss_fn, has_aux=True)(worst)


def _unit(grads: Any) -> Any:
    """Return the gradients with a norm of 1, all leaves together; of zeros zeros.

    In float32 at least, and with a largest entry of 1 before anything is squared: the
    squares of entries below 1e-23 are 0.
    """
    grads = jax.tree.map(predictions.wide, grads)
    entries = [jnp.max(jnp.abs(g), initial=0) for g in jax.tree.leaves(grads)]
    largest = jnp.max(jnp.stack(entries))
    largest = jnp.where(largest > 0, largest, 1)
    grads = jax.tree.map(lambda g: g / largest, grads)
    norm = jnp.maximum(optax.tree.norm(grads), 1)  # 0 where there is no direction
    return jax.tree.map(lambda g: g / norm, grads)


def _moved(w: jax.Array, step: jax.Array) -> jax.Array:
    """Return w + step in the type of w, added in the wider one."""
    return (predictions.wide(w) + step).astype(w.dtype)
