"""The fast gradient sign method: one step of projected gradient ascent."""

import dataclasses
from typing import Any

from jax.typing import ArrayLike

from jaxrobust import losses
from jaxrobust._core import pytree
from jaxrobust._core.representation import concise
from jaxrobust.attacks import _call
from jaxrobust.attacks.cost import Cost
from jaxrobust.attacks.pgd import PGD
from jaxrobust.types import Array, LogitsFn, Loss, Threat


@pytree.register
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class FGSM:
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

    step_size: ArrayLike | None = None
    rel_step_size: ArrayLike | None = None
    loss: Loss = dataclasses.field(
        default=losses.cross_entropy, metadata={"static": True}
    )
    random_start: bool = dataclasses.field(default=False, metadata={"static": True})

    __repr__ = concise

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

    @property
    def takes(self) -> str:
        """What `y` is: what the loss takes, see `jaxrobust.losses`."""
        return losses.takes(self.loss)

    @property
    def needs_key(self) -> bool:
        """Whether a key must be given."""
        return self.random_start

    @property
    def cost(self) -> Cost:
        """Gradient and forward evaluations for each example."""
        return self.as_pgd.cost

    def __call__(
        self,
        logits_fn: LogitsFn,
        x: Array,
        y: Any,
        *,
        threat: Threat,
        key: Array | None = None,
    ) -> Array:
        """Return adversarial examples `x_adv [B, ...]`; arguments as for `PGD`."""
        return _call.call(self, logits_fn, x, y, threat=threat, key=key)

    def run(self, logits_fn, x, y, threat, keys) -> Array:
        """Return `x_adv` without checks."""
        return self.as_pgd.run(logits_fn, x, y, threat, keys)


def fgsm(
    logits_fn: LogitsFn,
    x: Array,
    y: Any,
    *,
    threat: Threat,
    key: Array | None = None,
    **settings: Any,
) -> Array:
    """Attack by one step of the fast gradient sign method; the function form of `FGSM`.

    Goodfellow et al. 2015, arXiv:1412.6572.

    Args:
      logits_fn: Pure function from inputs `[B, ...]` to logits `[B, C]`.
      x: Clean inputs `[B, ...]`.
      y: Labels `[B]`, or what the loss takes.
      threat: The threat model.
      key: A typed PRNG key; needed with `random_start=True` only.
      **settings: The fields of `FGSM`: step_size, rel_step_size, loss, random_start.

    Returns:
      `x_adv [B, ...]`.

    Raises:
      ValueError, TypeError: On misuse, with advice.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> weights = jnp.array([[1.0, -1.0], [0.0, 3.0]])
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> print(fgsm(lambda x: x @ weights, x, y, threat=jr.Linf(0.25)))
      [[0.25 0.75]]
    """
    return FGSM(**settings)(logits_fn, x, y, threat=threat, key=key)
