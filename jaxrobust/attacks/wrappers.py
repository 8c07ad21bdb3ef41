"""Attacks made of attacks: the best of several restarts, the worst case of several."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import losses
from jaxrobust._core import batching, pytree
from jaxrobust.attacks._base import (
    MIXED,
    Attack,
    Function,
    Stepped,
    as_attack,
    check_count,
)
from jaxrobust.attacks.cost import Cost
from jaxrobust.attacks.pgd import is_better, value_of
from jaxrobust.types import Array, LogitsFn, Loss, Threat


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class Restarts(Attack):
    """Runs a randomised attack several times and keeps each example's best result.

    Madry et al. 2018, arXiv:1706.06083, section 5. What is broken beats what is not, then
    the larger loss wins. Restart r of example i draws from `fold_in(key_i, r)`.

    Args:
      attack: The attack to repeat; it must draw random numbers.
      num_restarts: Number of independent runs.
      loss: What "best" means; by default the attack's own loss.

    Raises:
      ValueError: If the attack is deterministic or `num_restarts` is below 1.

    Example:
      >>> import jaxrobust as jr
      >>> print(Restarts(jr.PGD(num_steps=40), 10).total_cost())
      Cost(gradients=400, forwards=20)
    """

    attack: Any
    num_restarts: int = pytree.static()
    loss: Loss | None = pytree.static(None)

    def __post_init__(self):
        check_count(self, "num_restarts")
        # The dataclass is frozen; this only adopts a plain function.
        object.__setattr__(self, "attack", as_attack(self.attack))
        is_known = not isinstance(self.attack, Function)
        if is_known and not self.attack.needs_key and self.num_restarts > 1:
            raise ValueError(
                f"Restarts({self.attack!r}, {self.num_restarts}): the attack is "
                "deterministic, so each restart would repeat the first; set "
                "random_start=True."
            )

    @property
    def needs_key(self) -> bool:
        # Without one each restart would repeat the first.
        return self.num_restarts > 1 or self.attack.needs_key

    @property
    def takes(self) -> str:
        return self.attack.takes

    @property
    def goal(self) -> Loss:
        return self.loss or self.attack.goal

    def parts(self, y: Any, threat: Threat) -> tuple[tuple[Any, Any], ...]:
        return ((self.attack, y),)

    @property
    def machine(self) -> Stepped | None:
        return self.attack.machine

    @property
    def allows_any_distance(self) -> bool:
        return self.attack.allows_any_distance

    def total_cost(self, num_classes: int = 10) -> Cost | None:
        """Return the evaluations of all restarts, and a forward pass for each result."""
        cost = self.attack.total_cost(num_classes)
        return None if cost is None else (cost + Cost(0, 1)) * self.num_restarts

    def run(self, logits_fn, x, y, threat, keys) -> Array:
        goal = goal_on(self, y, threat)

        def restart(r: Array, best: tuple[Array, Array, Array]):
            x_adv = self.attack.run(logits_fn, x, y, threat, keys_of_run(keys, r))
            return better_of(goal, logits_fn, y, best, x_adv)

        return jax.lax.fori_loop(0, self.num_restarts, restart, nothing_yet(x))[0]

    def num_items(self, num_classes: int) -> int:
        return self.num_restarts * self.attack.num_items(num_classes)

    def init_item(self, x, y, logits, item, *, threat, keys, start=None) -> Any:
        r, rest = jnp.divmod(item, self.attack.num_items(logits.shape[-1]))
        keys_r = keys_of_run(keys, r)
        init = functools.partial(self.attack.init_item, x, y, logits, rest)
        state = init(threat=threat, keys=keys_r)
        if start is None:
            return state
        first = init(threat=threat, keys=keys_r, start=start)
        return jax.tree.map(lambda a, b: batching.where(r == 0, a, b), first, state)


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class WorstOf(Attack):
    """Runs several attacks and keeps each example's worst case.

    Croce & Hein 2020, arXiv:2003.01690: robustness is robustness to all of them. Attack
    k draws from `fold_in(key, k)`.

    Args:
      attacks: Attacks, or plain functions with the signature of one.
      loss: What "worst" means among results that all succeed or all fail; by default the
        margin, of the target for attacks that take targets.

    Raises:
      ValueError: If there are no attacks.

    Example:
      >>> import jaxrobust as jr
      >>> print(WorstOf((jr.FGSM(), jr.PGD(num_steps=40))).total_cost())
      Cost(gradients=41, forwards=3)
    """

    attacks: tuple[Any, ...]
    loss: Loss | None = pytree.static(None)

    def __post_init__(self):
        if not isinstance(self.attacks, tuple | list) or not self.attacks:
            raise ValueError(
                "WorstOf needs a tuple of at least one attack, e.g. "
                "WorstOf((FGSM(), PGD()))."
            )
        object.__setattr__(self, "attacks", tuple(map(as_attack, self.attacks)))

    @property
    def needs_key(self) -> bool:
        return any(attack.needs_key for attack in self.attacks)

    @property
    def allows_any_distance(self) -> bool:
        return all(attack.allows_any_distance for attack in self.attacks)

    @property
    def takes(self) -> str:
        # What all parts take that say it.
        kinds = {attack.takes for attack in self.attacks} - {losses.ANYTHING}
        return MIXED if len(kinds) > 1 else next(iter(kinds), losses.ANYTHING)

    @property
    def goal(self) -> Loss:
        if self.loss is not None:
            return self.loss
        kinds = {losses.LABELS: losses.margin, losses.ANYTHING: losses.margin}
        kinds |= {losses.TARGETS: losses.targeted(losses.margin)}
        kinds |= {losses.PAIR: losses.margin_of_pair}
        own = [attack.goal for attack in self.attacks if attack.takes == self.takes]
        return kinds.get(self.takes) or own[0]

    def parts(self, y: Any, threat: Threat) -> tuple[tuple[Any, Any], ...]:
        return tuple((attack, y) for attack in self.attacks)

    def total_cost(self, num_classes: int = 10) -> Cost | None:
        """Return the evaluations of all parts, and a forward pass for each result."""
        costs = [attack.total_cost(num_classes) for attack in self.attacks]
        known = [cost + Cost(0, 1) for cost in costs if cost is not None]
        return sum(known, Cost(0, 0)) if len(known) == len(costs) else None

    def stages(self, *, threat: Threat) -> tuple[tuple[str, Any], ...]:
        return tuple((repr(attack), attack) for attack in self.attacks)

    def run(self, logits_fn, x, y, threat, keys) -> Array:
        best, goal = nothing_yet(x), goal_on(self, y, threat)
        for k, attack in enumerate(self.attacks):
            x_adv = attack.run(logits_fn, x, y, threat, keys_of_run(keys, k))
            best = better_of(goal, logits_fn, y, best, x_adv)
        return best[0]


def keys_of_run(keys: Any, number: Any) -> Any:
    """Return the keys of one of several runs; None where there are none."""
    return None if keys is None else batching.fold_in(keys, number)


def goal_on(attack: Restarts | WorstOf, y: Any, threat: Threat) -> Loss:
    """Return the goal; of a `y` that is not labels, losses that take anything know it."""
    is_labels = not isinstance(y, tuple) and y.ndim == 1
    inside = attack.losses_with_y(y, threat)
    if attack.loss or attack.takes != losses.ANYTHING or is_labels or not inside:
        return attack.goal
    return inside[0][0]


def nothing_yet(x: Array) -> tuple[Array, Array, Array]:
    """Return `x` as the best so far, to which any result is preferred."""
    zero = batching.zeros(x)
    return x, zero > 0, zero - jnp.inf


def better_of(loss: Loss, logits_fn: LogitsFn, y: Any, best, x_adv: Array):
    """Keep, for each example, the better of the best so far and `x_adv`."""
    value, is_broken = value_of(loss, logits_fn, x_adv, y)
    # NaN: of logits that are not numbers.
    value = jnp.where(jnp.isnan(value), -jnp.inf, value)
    better = is_better(is_broken, value, best[1], best[2])
    return (
        batching.where(better, x_adv, best[0]),
        jnp.where(better, is_broken, best[1]),
        jnp.where(better, value, best[2]),
    )
