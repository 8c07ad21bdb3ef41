"""What an evaluation is about: the model and its data, the attacks, what they found."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust._placing import Placing
from jaxrobust.attacks import items


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is attacked: the model on its devices, the data on the host.

    Attributes:
      logits_fn: The model, a pytree.
      threat: The threat; `eps` is a scalar or `[N]`.
      x: Clean inputs `[N, ...]`.
      y: What the loss takes, leaves `[N, ...]`.
      logits: Clean logits `[N, C]`.
      placing: Where batches go.
      is_loop: Whether several steps may be one loop: not if convolutions are slow there.
    """

    logits_fn: Any
    threat: Any
    x: np.ndarray
    y: Any
    logits: np.ndarray
    placing: Placing
    is_loop: bool

    def threat_of(self, rows: np.ndarray) -> Any:
        """Return the threat with the radii of these examples."""
        if jnp.ndim(self.threat.eps) == 0:
            return self.threat
        eps = self.placing.spread(np.asarray(self.threat.eps)[rows])
        return dataclasses.replace(cast(Any, self.threat), eps=eps)


@dataclasses.dataclass
class Found:
    """What the attacks have found so far, on the host; updated in place.

    Attributes:
      x_adv: The point to report `[N, ...]`: the first that broke the example, or the one
        of the largest loss.
      loss: Loss of that point `[N]`, of the attack that found it.
      broken_by: Number of the stage that broke the example `[N]`; -1: none.
      counts: Evaluations: `gradients` and `forwards` that the hardware performed,
        `gradients_needed` and `forwards_needed` that an open example waited for; and
        how many breaks were `not_confirmed` when the point was classified again.
    """

    x_adv: np.ndarray
    loss: np.ndarray
    broken_by: np.ndarray
    counts: dict[str, int]

    @classmethod
    def nothing(cls, x: np.ndarray) -> "Found":
        """Return the state before any attack: every example at its clean point."""
        names = ("gradients", "forwards", "gradients_needed", "forwards_needed")
        names = (*names, "not_confirmed")
        loss = np.full(len(x), -np.inf, np.float32)
        none = np.full(len(x), -1, np.int32)
        return cls(x.copy(), loss, none, dict.fromkeys(names, 0))

    def merge(self, other: "Found", *, is_first: bool) -> None:
        """Take over what a stage has broken by itself, of the first stage everything."""
        is_new = (self.broken_by == -1) & (other.broken_by >= 0) | is_first
        for name in ("x_adv", "loss", "broken_by"):
            getattr(self, name)[is_new] = getattr(other, name)[is_new]
        for name, count in other.counts.items():
            self.counts[name] += count

    def count(self, cost: Any, performed: int, needed: int) -> None:
        """Add evaluations that cost `cost` each."""
        for name in ("gradients", "forwards"):
            self.counts[name] += getattr(cost, name) * performed
            self.counts[f"{name}_needed"] += getattr(cost, name) * needed


@dataclasses.dataclass(frozen=True)
class Stage:
    """One attack of an evaluation.

    Attributes:
      attack: A state machine, perhaps inside `Restarts` or `Targets`.
      number: Its place among the attacks of the evaluation.
      name: What reports call it.
      keys: One key for each example `[N]`, or None.
      is_queued: Whether examples leave as soon as they are broken.
    """

    attack: Any
    number: int
    name: str
    keys: jax.Array | None
    is_queued: bool

    @property
    def inner(self) -> Any:
        """The attack that takes the steps."""
        return items.innermost(self.attack)

    def keys_of(self, rows: np.ndarray) -> jax.Array | None:
        """Return the keys of these examples."""
        if self.keys is None:
            return None
        impl = jax.random.key_impl(self.keys)
        return jax.random.wrap_key_data(jnp.asarray(self._key_data[rows]), impl=impl)

    @functools.cached_property
    def _key_data(self) -> np.ndarray:
        # On the host, like the examples: an array of keys is slow to index.
        return np.asarray(jax.random.key_data(cast(jax.Array, self.keys)))


def can_be_queued(attack: Any) -> bool:
    """Whether an attack is a state machine, and its best point is what counts."""
    inner = items.innermost(attack)
    is_machine = all(hasattr(inner, name) for name in ("init", "step", "step_cost"))
    return is_machine and getattr(inner, "keep_best", True)
