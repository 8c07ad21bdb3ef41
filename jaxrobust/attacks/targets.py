"""Multi-targeted attacks: one run against each of the most likely wrong classes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import losses
from jaxrobust._core import predictions, pytree
from jaxrobust.attacks._base import Attack, Stepped, as_attack, check_count
from jaxrobust.attacks.cost import Cost
from jaxrobust.attacks.wrappers import better_of, keys_of_run, nothing_yet
from jaxrobust.types import Array, Guided, Loss, Threat


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class Targets(Attack):
    """Runs a targeted attack against the most likely wrong classes and keeps the best.

    Gowal et al. 2019, arXiv:1910.09338; the APGD-T of AutoAttack, arXiv:2003.01690, is
    `Targets(APGD(loss=dlr_targeted))`. Target t of an example is the class of the
    (t+1)-th largest clean logit among those that are not its label. What is broken (any
    wrong class) beats what is not, then the larger margin wins. The run against target t of
    example i draws from `fold_in(key_i, t)`.

    Args:
      attack: An attack whose loss takes a pair `(labels, targets)`.
      num_targets: Number of classes to try; with C classes there are at most C - 1.

    Raises:
      ValueError, TypeError: If `num_targets` is below 1, or the attack takes no pairs.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> attack = Targets(jr.APGD(num_steps=10, loss=jr.losses.dlr_targeted))
      >>> x, y = jnp.array([[0.75, 0.5, 0.25]]), jnp.array([0])
      >>> x_adv = attack(lambda x: 9 * x, x, y, threat=jr.Linf(0.25), key=jax.random.key(0))
      >>> print(jr.losses.margin(x_adv, y))
      [0.25]
    """

    papers = ("croce2020autoattack",)

    attack: Any
    num_targets: int = pytree.static(9)

    def __post_init__(self):
        check_count(self, "num_targets")
        # The dataclass is frozen; this only adopts a plain function.
        object.__setattr__(self, "attack", as_attack(self.attack))
        if self.attack.takes not in (losses.PAIR, losses.ANYTHING):
            raise TypeError(
                f"Targets({self.attack!r}): the attack takes {self.attack.takes}; "
                "one that takes pairs (labels, targets) is needed, such as "
                "jr.APGD(loss=jr.losses.dlr_targeted) or jr.FAB(targeted=True)."
            )

    takes = losses.LABELS

    @property
    def goal(self) -> Loss:
        return losses.margin

    def parts(self, y: Any, threat: Threat) -> tuple[tuple[Any, Any], ...]:
        return ((self.attack, Guided(y, y)),)

    @property
    def needs_key(self) -> bool:
        return self.attack.needs_key

    @property
    def machine(self) -> Stepped | None:
        return self.attack.machine

    @property
    def allows_any_distance(self) -> bool:
        return self.attack.allows_any_distance

    def total_cost(self, num_classes: int = 10) -> Cost | None:
        """Return the evaluations of all runs, a forward pass each, one on the clean `x`."""
        cost = self.attack.total_cost(num_classes)
        num_runs = min(self.num_targets, num_classes - 1)
        return None if cost is None else (cost + Cost(0, 1)) * num_runs + Cost(0, 1)

    def run(self, logits_fn, x, y, threat, keys) -> Array:
        targets = self._targets(logits_fn(x), y)

        def against(t: Array, best: tuple[Array, Array, Array]):
            guided, keys_t = Guided(y, targets[:, t]), keys_of_run(keys, t)
            x_adv = self.attack.run(logits_fn, x, guided, threat, keys_t)
            return better_of(losses.margin, logits_fn, y, best, x_adv)

        return jax.lax.fori_loop(0, targets.shape[1], against, nothing_yet(x))[0]

    def num_items(self, num_classes: int) -> int:
        inner = self.attack.num_items(num_classes)
        return min(self.num_targets, num_classes - 1) * inner

    def init_item(self, x, y, logits, item, *, threat, keys, start=None) -> Any:
        t, rest = jnp.divmod(item, self.attack.num_items(logits.shape[-1]))
        target = jnp.take_along_axis(self._targets(logits, y), t[:, None], axis=1)
        guided, keys_t = Guided(y, target[:, 0]), keys_of_run(keys, t)
        return self.attack.init_item(
            x, guided, logits, rest, threat=threat, keys=keys_t, start=start
        )

    def _targets(self, logits: Array, y: Array) -> Array:
        """Return the most likely wrong classes, `[B, min(num_targets, C - 1)]`."""
        num_classes = logits.shape[-1]
        logits = predictions.wide(logits)
        others = jnp.where(predictions.is_label(logits, y), -jnp.inf, logits)
        return jax.lax.top_k(others, min(self.num_targets, num_classes - 1))[1]
