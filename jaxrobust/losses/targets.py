"""Losses with a class to reach instead of one to leave."""

import dataclasses
from typing import Any, ClassVar

import jax

from jaxrobust._core.kinds import ANYTHING, LABELS, TARGETS
from jaxrobust._core.representation import concise
from jaxrobust.losses.expected import Expected
from jaxrobust.losses.kinds import takes as takes_of
from jaxrobust.types import Loss


@dataclasses.dataclass(frozen=True, repr=False)
class Targeted:
    """The negative of a loss at a target class; made by `targeted`.

    Args:
      loss: A loss on labels.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.losses import margin
      >>> print(Targeted(margin)(jnp.array([[1.0, 3.0]]), jnp.array([1])))
      [2.]
    """

    loss: Loss

    takes: ClassVar[str] = TARGETS

    __repr__ = concise

    def __post_init__(self):
        if isinstance(self.loss, Expected):
            raise TypeError(
                f"targeted({self.loss!r}): the mean over the draws comes last, "
                f"expected(targeted({self.loss.loss!r}))."
            )
        if takes_of(self.loss) not in (LABELS, ANYTHING):
            raise TypeError(
                f"targeted({self.loss!r}): the loss takes {takes_of(self.loss)} as y; one "
                "on labels is needed, such as jr.losses.cross_entropy."
            )

    def __call__(self, logits: jax.Array, y: Any) -> jax.Array:
        return -self.loss(logits, y)


def targeted(loss: Loss) -> Targeted:
    """Turn a loss into one that grows as the model is drawn to the class given as `y`.

    Szegedy et al. 2014, arXiv:1312.6199, section 4.1. Equal losses give equal values, so
    nothing is compiled twice.

    Args:
      loss: A loss on labels, such as `cross_entropy` or `margin`.

    Returns:
      A loss whose `y` is the target class `[B]`.

    Raises:
      TypeError: If the loss takes something else than labels.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.losses import margin
      >>> loss = targeted(margin)
      >>> print(loss(jnp.array([[1.0, 3.0, 2.0]]), jnp.array([1])))
      [1.]
    """
    return Targeted(loss)
