"""What objectives with an attack share: the inner problem, weights and schedules."""

import dataclasses
from typing import Any

import jax
import optax

from jaxrobust import losses
from jaxrobust._core import batching, checks, pytree, threat_rows
from jaxrobust.attacks._base import Attack, as_attack, check_takes_labels
from jaxrobust.training.objectives import Objective
from jaxrobust.types import Array, Threat


@dataclasses.dataclass(frozen=True, repr=False)
class Attacked(Objective):
    """An objective whose inner problem is an attack on a threat."""

    attack: Any
    threat: Any  # pyrefly: ignore[bad-override]
    _: dataclasses.KW_ONLY
    eps_schedule: optax.Schedule | None = pytree.static(None)

    def inner(self, attacked_fn, x, y, *, key, step) -> Any:
        """Return x_adv, the maximiser in the threat of the attack's loss."""
        return find(
            self.attack, attacked_fn, x, y, threat=self.threat_at(step), key=key
        )

    def threat_at(self, step: Any) -> Threat:
        """Return the threat, with the radius that it has at this step."""
        return scaled(self.threat, self.eps_schedule, step)


def scaled(threat: Any, eps_schedule: optax.Schedule | None, step: Any) -> Threat:
    """Return the threat with eps times the schedule."""
    if eps_schedule is None:
        return threat
    return threat.with_eps(threat.eps * at(eps_schedule, step, "eps_schedule"))


def find(attack, attacked_fn, x, y, *, threat, key) -> Array:
    """Return x_adv; an attack on the clean logits, as by `kl`, is given these for `y`."""
    given = attacked_fn(x) if attack.takes == losses.LOGITS else y
    return attack(attacked_fn, x, given, threat=threat, key=key)


def as_adversary(attack: Any, threat: Any, name: str) -> tuple[Attack, Threat]:
    """Return attack and threat of an objective as ours, after checking what they take."""
    attack = as_attack(attack)
    if attack.takes != losses.LOGITS:
        check_takes_labels(attack, f"{name}(attack)")
    elif not attack.needs_key:
        raise ValueError(
            f"{name}(attack={attack!r}) starts at x, where the loss on the clean logits "
            "has no gradient: it would not move. Let it start at random, as "
            "jr.PGD(num_steps=10, loss=jr.losses.kl) does."
        )
    return attack, threat_rows.as_threat(threat)


def as_weight(weight: Any, name: str) -> Any:
    """Return a weight, or a schedule of one, as a pytree after checking it."""
    if callable(weight):
        return batching.as_pytree(weight)
    needed = (
        "a finite number of at least 0, or a schedule from the training step to one,"
    )
    checks.check_number(weight, name, needed)
    return weight


def at(weight: Any, step: Any, name: str) -> Any:
    """Return the value of a weight at a training step."""
    if not callable(weight):
        return weight
    if step is None:
        raise ValueError(
            f"{name} is a schedule and needs the number of the training step: call the "
            "objective with step=step, as jr.training.fit does."
        )
    return weight(step)


def key_of_part(key: Array | None, i: int) -> Array | None:
    """Return the key of part number i of an objective; None where there is none."""
    return None if key is None else jax.random.fold_in(key, i)


def check_classes(logits: Any, expected: Any, name: str) -> None:
    """Raise where another model has other classes than the one that is trained."""
    if logits.shape != expected.shape:
        raise ValueError(
            f"{name} returns logits of shape {logits.shape}, the trained model "
            f"{expected.shape}: both must know the same classes, in the same order."
        )
