"""Multi-targeted attacks: one run against each of the most likely wrong classes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import losses
from jaxrobust._core import batching, predictions, pytree
from jaxrobust._core.representation import concise
from jaxrobust.attacks import _call, _items
from jaxrobust.attacks.cost import Cost
from jaxrobust.attacks.wrappers import better_of, nothing_yet
from jaxrobust.types import Array, LogitsFn, Loss, Threat


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class Targets:
    """Runs a targeted attack against the most likely wrong classes and keeps the best.

    Gowal et al. 2019, arXiv:1910.09338; the APGD-T of AutoAttack, arXiv:2003.01690, is
    `Targets(APGD(loss=dlr_targeted))`. Target t of an example is the class of the
    (t+1)-th largest clean logit among those that are not its label. A success (any wrong
    class) beats a failure, then the larger margin wins. The run against target t of
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

    attack: Any
    num_targets: int = dataclasses.field(default=9, metadata={"static": True})

    __repr__ = concise

    def __post_init__(self):
        if not isinstance(self.num_targets, int) or self.num_targets < 1:
            raise ValueError(
                f"Targets(num_targets={self.num_targets!r}): a whole number of at least "
                "1 is needed."
            )
        if _items.takes(self.attack) not in (losses.PAIR, losses.ANYTHING):
            raise TypeError(
                f"Targets({self.attack!r}): the attack takes {_items.takes(self.attack)}; "
                "one that takes pairs (labels, targets) is needed, such as "
                "jr.APGD(loss=jr.losses.dlr_targeted) or jr.FAB(targeted=True)."
            )
        # The dataclass is frozen; this only makes a plain function acceptable to jit.
        object.__setattr__(self, "attack", batching.as_pytree(self.attack))

    @property
    def takes(self) -> str:
        """What `y` is: labels."""
        return losses.LABELS

    @property
    def goal(self) -> Loss:
        """The loss by which results are compared: any wrong class counts."""
        return losses.margin

    def parts(self, y: Any, threat: Threat) -> tuple[tuple[Any, Any], ...]:
        """Return the attack, with what it is given as `y`."""
        del threat
        return ((self.attack, (y, y)),)

    @property
    def needs_key(self) -> bool:
        """Whether a key must be given."""
        return _items.needs_key(self.attack)

    @property
    def cost(self) -> Cost | None:
        """Evaluations for each example if there are enough classes; None if unknown."""
        cost = getattr(self.attack, "cost", None)
        if cost is None:
            return None
        # A forward pass for each result, and one for the clean logits.
        runs = Cost(*(self.num_targets * n for n in cost + Cost(0, 1)))
        return runs + Cost(0, 1)

    def __call__(
        self,
        logits_fn: LogitsFn,
        x: Array,
        y: Array,
        *,
        threat: Threat,
        key: Array | None = None,
    ) -> Array:
        """Return adversarial examples `x_adv [B, ...]`; `y` are labels `[B]`."""
        return _call.call(self, logits_fn, x, y, threat=threat, key=key)

    def run(self, logits_fn, x, y, threat, keys) -> Array:
        """Return `x_adv` without checks."""
        targets = self._targets(logits_fn(x), y)

        def against(t: Array, best: tuple[Array, Array, Array]):
            keys_t = None if keys is None else batching.fold_in(keys, t)
            x_adv = self.attack(
                logits_fn, x, (y, targets[:, t]), threat=threat, key=keys_t
            )
            return better_of(losses.margin, logits_fn, y, best, x_adv)

        return jax.lax.fori_loop(0, targets.shape[1], against, nothing_yet(x))[0]

    def num_items(self, num_classes: int) -> int:
        """Return the number of runs, see `jaxrobust.attacks._items`."""
        inner = _items.num_items(self.attack, num_classes)
        return min(self.num_targets, num_classes - 1) * inner

    def init_item(self, x, y, logits, item, *, threat, keys) -> Any:
        """Return the state at the start of each example's item; evaluates nothing."""
        t, rest = _items.split(self, item, logits.shape[-1])
        target = jnp.take_along_axis(self._targets(logits, y), t[:, None], axis=1)
        keys_t = None if keys is None else batching.fold_in(keys, t)
        return _items.init_item(
            self.attack, x, (y, target[:, 0]), logits, rest, threat=threat, keys=keys_t
        )

    def _targets(self, logits: Array, y: Array) -> Array:
        """Return the most likely wrong classes, `[B, min(num_targets, C - 1)]`."""
        num_classes = logits.shape[-1]
        logits = predictions.wide(logits)
        others = jnp.where(predictions.is_label(logits, y), -jnp.inf, logits)
        return jax.lax.top_k(others, min(self.num_targets, num_classes - 1))[1]
