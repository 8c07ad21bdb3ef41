"""Losses of models that do not choose one class: regression, several labels, pixels."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrobust._core import batching, predictions
from jaxrobust._core.kinds import ANYTHING, LABELS, MULTI_HOT, POSITIONS, VALUES
from jaxrobust._core.representation import concise
from jaxrobust.losses.kinds import declares
from jaxrobust.losses.kinds import takes as takes_of
from jaxrobust.types import Loss


@declares(VALUES)
def squared_error(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Return the squared error summed over the outputs of each example.

    Legendre 1805. For regression: the attack has no goal but a large error.

    Args:
      outputs: What the model returns, `[B, ...]`.
      y: The true values, in the shape of the outputs.

    Returns:
      `[B]`.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> x, y = jnp.array([[0.5, 0.5]]), jnp.array([[1.0]])
      >>> print(jr.fgsm(lambda x: x @ jnp.array([[1.0], [-2.0]]), x, y,
      ...               threat=jr.Linf(0.25), loss=squared_error))
      [[0.25 0.75]]
    """
    error = batching.flatten(predictions.wide(outputs) - y)
    return jnp.sum(error**2, -1)


@declares(MULTI_HOT)
def binary_cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Return the sum over the labels of -log sigmoid(+-z): each is there or is not.

    For models of several labels at once. An example is broken where any of its labels is
    wrong: z > 0 says that it is there.

    Args:
      logits: `[B, C]`.
      y: Which labels are there, `[B, C]`, 0 or 1.

    Returns:
      `[B]`, at least 0.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> x, y = jnp.array([[0.5, 0.5]]), jnp.array([[1, 0]])
      >>> print(jr.fgsm(lambda x: x @ jnp.array([[2.0, 0.0], [0.0, 1.0]]), x, y,
      ...               threat=jr.Linf(0.25), loss=binary_cross_entropy))
      [[0.25 0.75]]
    """
    logits = predictions.wide(logits)
    return jnp.sum(jax.nn.softplus(jnp.where(y > 0, -logits, logits)), -1)


@dataclasses.dataclass(frozen=True, repr=False)
class PerPosition:
    """The mean of a loss over pixels or tokens; made by `per_position`.

    Args:
      loss: A loss on labels.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> loss = PerPosition(jr.losses.margin)
      >>> print(loss(jnp.array([[[1.0, 3.0], [0.0, 2.0]]]), jnp.array([[1, 0]])))
      [0.]
    """

    loss: Loss

    takes: ClassVar[str] = POSITIONS

    __repr__ = concise

    def __post_init__(self):
        if takes_of(self.loss) not in (LABELS, ANYTHING):
            raise TypeError(
                f"per_position({self.loss!r}): the loss takes {takes_of(self.loss)} as y, "
                "and a loss on labels is needed, such as jr.losses.cross_entropy."
            )

    def __call__(self, logits: jax.Array, y: Any) -> jax.Array:
        values = self.loss(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))
        return jnp.mean(values.reshape(len(y), -1), -1)


def per_position(loss: Loss) -> PerPosition:
    """Turn a loss on labels into its mean over pixels or tokens.

    Arnab et al. 2018, arXiv:1711.09856, attack segmentation so. The attack has no goal but
    a large loss: how many positions are wrong is counted by its user.

    Args:
      loss: A loss on labels, such as `cross_entropy`.

    Returns:
      A loss of logits `[B, ..., C]` and labels `[B, ...]`.

    Raises:
      TypeError: If the loss takes something else than labels.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> def segment(x):  # two classes: dark and bright pixels
      ...     return jnp.stack([0.5 - x, x - 0.5], axis=-1)
      >>> x, y = jnp.array([[0.25, 0.75]]), jnp.array([[0, 1]])
      >>> print(jr.fgsm(segment, x, y, threat=jr.Linf(0.25),
      ...               loss=per_position(jr.losses.cross_entropy)))
      [[0.5 0.5]]
    """
    return PerPosition(loss)
