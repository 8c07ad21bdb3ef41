"""Standard training: the empirical risk, without an adversary."""

import dataclasses

from jaxrobust import losses
from jaxrobust._core import checks, pytree
from jaxrobust.training.objectives import Objective, risk
from jaxrobust.types import Array, Loss


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class Standard(Objective):
    """The empirical risk (1/n) sum loss(f(x_i), y_i); made by `standard`."""

    loss: Loss = pytree.static(losses.cross_entropy)

    threat = None

    def inner(self, attacked_fn, x, y, *, key, step) -> None:
        """Return None: there is no adversary."""
        del attacked_fn, x, y, key, step

    def outer(self, trained_fn, x, y, found, *, step) -> tuple[Array, dict[str, Array]]:
        """Return the mean loss on clean inputs."""
        del found, step
        return risk(self.loss, trained_fn(x), y)


def standard(loss: Loss = losses.cross_entropy) -> Standard:
    """Return the objective of standard training: the mean loss on clean inputs.

    Empirical risk minimisation, Vapnik 1991.

    Args:
      loss: Per-example loss `(logits, y) -> [B]`.

    Returns:
      An objective `(trained_fn, attacked_fn, x, y, key=None) -> (loss, metrics)`.

    Example:
      >>> import jax.numpy as jnp
      >>> x, y = jnp.ones((1, 2)), jnp.array([0])
      >>> loss, metrics = standard()(lambda x: x, None, x, y)
      >>> print(loss, metrics["accuracy"])
      0.6931472 1.0
    """
    checks.check_loss(loss)
    return Standard(loss)
