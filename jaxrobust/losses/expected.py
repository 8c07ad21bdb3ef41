"""The mean of a loss over the draws of a random model."""

import dataclasses
from typing import Any

import jax

from jaxrobust._core.representation import concise
from jaxrobust.losses.kinds import takes as takes_of
from jaxrobust.types import Loss


@dataclasses.dataclass(frozen=True, repr=False)
class Expected:
    """A loss to be taken of each draw and then averaged; made by `expected`.

    Args:
      loss: Any loss.

    Example:
      >>> import jaxrobust as jr
      >>> print(Expected(jr.losses.margin))
      Expected(margin)
    """

    loss: Loss

    __repr__ = concise

    @property
    def takes(self) -> str:
        """What `y` is: what the loss takes."""
        return takes_of(self.loss)

    def __call__(self, logits: jax.Array, y: Any) -> jax.Array:
        return self.loss(logits, y)

    def of_draws(self, logits: jax.Array, y: Any) -> jax.Array:
        """Return the mean `[B]` of the losses of the draws, `[B, S, C]`."""
        return jax.vmap(self.loss, (1, None))(logits, y).mean(0)


def expected(loss: Loss) -> Expected:
    """Return a loss that is taken of each draw of a random model and then averaged.

    E[loss(f(x))] where any other loss is taken of the averaged output, loss(E[f(x)]); with
    `cross_entropy` the objective of Athalye et al. 2018, arXiv:1707.07397. AutoAttack's
    "rand" maximises it. Of a model that draws nothing it is the loss itself.

    Args:
      loss: Any loss, such as `cross_entropy` or `targeted(margin)`.

    Returns:
      A loss for attacks that climb along gradients: `PGD`, `FGSM`, `APGD`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> def noisy(x, key):
      ...     return x + jax.random.normal(key, x.shape)
      >>> model = jr.randomized(noisy, key=jax.random.key(0), num_samples=8)
      >>> x, y = jnp.array([[0.25, 0.5]]), jnp.array([1])
      >>> print(jr.fgsm(model, x, y, threat=jr.Linf(0.25),
      ...               loss=expected(jr.losses.margin)))
      [[0.5  0.25]]
    """
    return Expected(loss)
