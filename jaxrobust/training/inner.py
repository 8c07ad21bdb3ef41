"""Inner attacks that are for training only."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrobust import losses
from jaxrobust._core import batching, checks, pytree
from jaxrobust.attacks._base import Attack, OfLoss, as_attack
from jaxrobust.attacks.cost import Cost
from jaxrobust.attacks.pgd import gradient
from jaxrobust.types import Array, Guided, Loss, Threat


@pytree.register
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class NFGSM(OfLoss):
    """N-FGSM: a full step from a point that noise of twice eps has moved, not projected.

    de Jorge et al. 2022, arXiv:2202.01181, eq. (5): eta from U(-2 eps, 2 eps), then
    x + eta + eps sign(grad at x + eta); for other norms, eta from the ball of twice eps and
    the steepest step. For training alone: the points obey bounds and mask, and lie in the
    ball of radius (noise + rel_step_size) eps instead of eps. An evaluation with it says
    that they are outside of the threat.

    Args:
      noise: Radius of the noise in units of eps, at least 0.
      rel_step_size: Length of the step in units of eps.
      loss: Per-example loss to maximise.

    Raises:
      ValueError: If one of the numbers is negative.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> x, y, key = jnp.array([[0.5, 0.5]]), jnp.array([0]), jax.random.key(0)
      >>> x_adv = NFGSM()(lambda x: 9 * x, x, y, threat=jr.Linf(0.125), key=key)
      >>> bool((abs(x_adv - x) > 0.125).any())
      True
    """

    papers = ("dejorge2022",)

    noise: ArrayLike = 2.0
    rel_step_size: ArrayLike = 1.0
    loss: Loss = pytree.static(losses.cross_entropy)

    needs_key = True  # pyrefly: ignore[bad-override]

    def __post_init__(self):
        checks.check_loss(self.loss)
        checks.check_number(self.noise, "NFGSM's noise")
        checks.check_number(self.rel_step_size, "NFGSM's rel_step_size")

    def total_cost(self, num_classes: int = 10) -> Cost:
        return Cost(gradients=1, forwards=0)

    def run(self, logits_fn, x, y, threat, keys) -> Array:
        eps = jnp.asarray(threat.eps)
        noisy = threat.with_eps(self.noise * eps).sample(keys, x)
        direction = gradient(self.loss, logits_fn, noisy, y).direction
        step = threat.steepest(direction, noisy, self.rel_step_size * eps)
        # Noise and step cannot leave this ball: bounds and mask are what remains.
        reach = threat.with_eps((self.noise + self.rel_step_size) * eps)
        return reach.project((noisy + step).astype(x.dtype), x)


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class RandomTargets(Attack):
    """A targeted attack towards a wrong class that is drawn for each example.

    Kurakin et al. 2017, arXiv:1611.01236: a step away from the label is made by a rule that
    the model can learn to read backwards, so that it does better on attacked images than on
    clean ones (label leaking). A step towards a class that was drawn tells little of it.

    Args:
      attack: An attack that takes targets or pairs, e.g.
        `jr.PGD(num_steps=7, loss=jr.losses.targeted(jr.losses.cross_entropy))`.

    Raises:
      TypeError: If the attack takes something else.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> towards = jr.FGSM(loss=jr.losses.targeted(jr.losses.cross_entropy))
      >>> x, y, key = jnp.array([[0.75, 0.5]]), jnp.array([0]), jax.random.key(0)
      >>> print(RandomTargets(towards)(lambda x: x, x, y, threat=jr.Linf(0.25), key=key))
      [[0.5  0.75]]
    """

    papers = ("kurakin2017",)

    attack: Any

    needs_key = True  # pyrefly: ignore[bad-override]
    takes = losses.LABELS  # pyrefly: ignore[bad-override]
    goal = staticmethod(losses.margin)  # pyrefly: ignore[bad-override]

    def __post_init__(self):
        # The dataclass is frozen; this only adopts a plain function.
        object.__setattr__(self, "attack", as_attack(self.attack))
        if self.attack.takes not in (losses.TARGETS, losses.PAIR):
            raise TypeError(
                f"RandomTargets({self.attack!r}): the attack takes {self.attack.takes}; "
                "one that takes targets is needed, such as "
                "jr.PGD(loss=jr.losses.targeted(jr.losses.cross_entropy))."
            )

    def parts(self, y: Any, threat: Threat) -> tuple[tuple[Any, Any], ...]:
        return ((self.attack, self._given(y, y)),)

    def total_cost(self, num_classes: int = 10) -> Cost | None:
        return self.attack.total_cost(num_classes)

    def run(self, logits_fn, x, y, threat, keys) -> Array:
        num_classes = jax.eval_shape(logits_fn, x).shape[-1]

        def shift(key: Array) -> Array:  # every other class is as likely
            return jax.random.randint(jax.random.fold_in(key, 1), (), 1, num_classes)

        targets = (y + jax.vmap(shift)(keys)) % num_classes
        keys = batching.fold_in(keys, 0)
        return self.attack.run(logits_fn, x, self._given(y, targets), threat, keys)

    def _given(self, y: Any, targets: Any) -> Any:
        return Guided(y, targets) if self.attack.takes == losses.PAIR else targets
