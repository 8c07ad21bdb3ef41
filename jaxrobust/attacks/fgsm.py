"""The fast gradient sign method: one step of projected gradient ascent."""

import dataclasses

from jax.typing import ArrayLike

from jaxrobust import losses
from jaxrobust._core import pytree
from jaxrobust.attacks._base import FROM_X, OfLoss
from jaxrobust.attacks.cost import Cost
from jaxrobust.attacks.pgd import PGD
from jaxrobust.types import Array, Loss


@pytree.register
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class FGSM(OfLoss):
    """One steepest step to the edge of the ball: x + eps sign(grad loss) for `Linf`.

    Goodfellow et al. 2015, arXiv:1412.6572. For `L2` and `L1` the same principle: the
    maximiser of the linearised loss, which is exact where the model is linear. With
    `random_start=True, rel_step_size=1.25`: the FGSM-RS of Wong et al. 2020,
    arXiv:2001.03994.

    Args:
      step_size: Length of the step in the units of the data.
      rel_step_size: The same in units of eps; at most one of the two. Default 1.
      loss: Per-example loss to maximise.
      random_start: Start uniformly in the ball instead of at `x`; needs a key.

    Raises:
      ValueError: If both step sizes are given, or one is not above 0.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> weights = jnp.array([[1.0, -1.0], [0.0, 3.0]])
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> print(FGSM()(lambda x: x @ weights, x, y, threat=jr.Linf(0.25)))
      [[0.25 0.75]]
    """

    papers = ("goodfellow2015",)

    step_size: ArrayLike | None = None
    rel_step_size: ArrayLike | None = None
    loss: Loss = pytree.static(losses.cross_entropy)
    random_start: bool = pytree.static(False)

    def __post_init__(self):
        _ = self.as_pgd  # PGD checks the settings

    @property
    def as_pgd(self) -> PGD:
        """The same attack as one step of `PGD`."""
        is_default = self.step_size is None and self.rel_step_size is None
        return PGD(
            num_steps=1,
            step_size=self.step_size,
            rel_step_size=1.0 if is_default else self.rel_step_size,
            loss=self.loss,
            random_start=self.random_start,
            keep_best=False,
        )

    instead_of_a_key = FROM_X

    @property
    def needs_key(self) -> bool:
        return self.random_start

    def total_cost(self, num_classes: int = 10) -> Cost:
        return self.as_pgd.total_cost(num_classes)

    def run(self, logits_fn, x, y, threat, keys) -> Array:
        return self.as_pgd.run(logits_fn, x, y, threat, keys)
