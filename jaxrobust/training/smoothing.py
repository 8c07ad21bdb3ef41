"""Label smoothing, as a loss that every objective takes."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxrobust import losses
from jaxrobust._core import checks, predictions
from jaxrobust._core.representation import concise
from jaxrobust.types import Array, Loss


@dataclasses.dataclass(frozen=True, repr=False)
class Smoothed:
    """(1 - amount) CE(f(x), y) + amount mean_k CE(f(x), k); made by `label_smoothing`."""

    amount: float

    takes: ClassVar[str] = losses.LABELS

    __repr__ = concise

    def __call__(self, logits: Array, y: Array) -> Array:
        log_p = jax.nn.log_softmax(predictions.wide(logits))
        uniform = -jnp.mean(log_p, -1)
        return (1 - self.amount) * losses.cross_entropy(logits, y) + (
            self.amount * uniform
        )


def label_smoothing(amount: float = 0.1) -> Loss:
    """Return the cross-entropy with labels smoothed: 1 - amount for y, the rest for all.

    Szegedy et al. 2016, arXiv:1512.00567, section 7. For training; attacks climb the plain
    cross-entropy. Pang et al. 2021, arXiv:2010.00467, find 0.1 to 0.2 useful with PGD
    training.

    Args:
      amount: What is taken from the label and spread over all classes, in [0, 1).

    Returns:
      A loss `(logits, y) -> [B]` for the argument `loss` of objectives.

    Raises:
      ValueError: If the amount is outside of [0, 1).

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> loss = label_smoothing(0.5)
      >>> print(loss(jnp.array([[2.0, 0.0]]), jnp.array([0])).round(2))
      [0.63]
      >>> objective = jr.training.adversarial(jr.FGSM(), jr.Linf(0.1), loss=loss)
    """
    needed = "a number in [0, 1), such as 0.1,"
    checks.check_number(amount, "amount", needed, lambda value: 0 <= value < 1)
    return Smoothed(float(amount))
