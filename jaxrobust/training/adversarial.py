"""Adversarial training: the risk at the points that an attack has found."""

import dataclasses
from typing import Any

import optax

from jaxrobust import losses
from jaxrobust._core import checks, pytree
from jaxrobust.training.attacked import Attacked, as_adversary
from jaxrobust.training.objectives import risk
from jaxrobust.types import Array, Loss, Threat


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class Adversarial(Attacked):
    """The adversarial risk (1/n) sum max_delta loss(f(x_i + delta), y_i).

    Made by `adversarial`.
    """

    loss: Loss = pytree.static(losses.cross_entropy)

    def outer(self, trained_fn, x, y, found, *, step) -> tuple[Array, dict[str, Array]]:
        """Return the mean loss at the attacked inputs."""
        del x, step
        return risk(self.loss, trained_fn(found), y)


def adversarial(
    attack: Any,
    threat: Threat,
    loss: Loss = losses.cross_entropy,
    eps_schedule: optax.Schedule | None = None,
) -> Adversarial:
    """Return the objective of adversarial training: the mean loss on attacked inputs.

    Madry et al. 2018, arXiv:1706.06083, eq. (2.1); with `FGSM()`: Goodfellow et al. 2015.

    A step costs the attack and one gradient.

    Args:
      attack: Any attack, e.g. `jr.PGD(num_steps=7)`; one by `jr.losses.kl` is given the
        clean logits, which cost a forward pass.
      threat: The threat model, e.g. `jr.Linf(8 / 255)`.
      loss: Per-example loss `(logits, y) -> [B]` that training minimises.
      eps_schedule: Factor on eps by training step. A small network on a large ball stays
        a constant function unless eps grows slowly: `optax.schedules.linear_schedule(0,
        1, 5000)`. Give the attack `rel_step_size`, so that its steps grow too.

    Returns:
      An objective `(trained_fn, attacked_fn, x, y, key=, step=) -> (loss, metrics)`.

    Raises:
      ValueError: If an attack by `kl` starts at x, where it cannot move.
      TypeError: If the attack takes targets.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> objective = adversarial(jr.FGSM(), threat=jr.Linf(0.5, bounds=None))
      >>> def loss(weights):
      ...     frozen = jax.lax.stop_gradient(weights)
      ...     x, y = jnp.ones((1, 2)), jnp.array([0])
      ...     return objective(lambda x: x @ weights, lambda x: x @ frozen, x, y)
      >>> (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(jnp.eye(2))
      >>> print(round(float(value), 3))
      1.313
    """
    attack, threat = as_adversary(attack, threat, "adversarial")
    checks.check_loss(loss)
    return Adversarial(attack, threat, loss, eps_schedule=eps_schedule)
