"""What an evaluation is about: the model and its data, the attacks, what they found."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust._core import threat_rows
from jaxrobust._core.placing import Placing
from jaxrobust.threats import narrow


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is attacked: the model on its devices, the data on the host.

    Attributes:
      logits_fn: The model, a pytree.
      threat: The threat; `eps`, bounds and mask for all, or for each example `[N, ...]`.
      x: Clean inputs `[N, ...]`.
      y: Labels `[N]`.
      logits: Clean logits `[N, C]`.
      placing: Where batches go.
      is_loop: Whether several steps may be one loop: not if convolutions are slow there.
      dtype: The type in which points are returned; `x` is in float32 at least.
      start: Where the first run of each attack begins `[N, ...]`, or None.
    """

    logits_fn: Any
    threat: Any
    x: np.ndarray
    y: np.ndarray
    logits: np.ndarray
    placing: Placing
    is_loop: bool
    dtype: Any
    start: np.ndarray | None = None

    @property
    def is_correct(self) -> np.ndarray:
        """Which clean inputs are classified correctly, `[N]`."""
        return self.logits.argmax(-1) == self.y

    def threat_of(self, rows: np.ndarray) -> Any:
        """Return the threat of these examples."""
        threat = threat_rows.rows_of(
            self.threat, rows, self.x.ndim, self.placing.spread
        )
        is_narrow = narrow.is_narrow(self.dtype)
        return narrow.threat_in(threat, self.dtype) if is_narrow else threat


# How much a point is worth to the adversary.
NOTHING, WRONG, REACHED = 0, 1, 2


@dataclasses.dataclass
class Found:
    """What the attacks have found so far, on the host; updated in place.

    Attributes:
      x_adv: The point to report `[N, ...]`: one that reaches the goal, else one that is
        classified wrongly, else the first attack's.
      worth: `[N]`, NOTHING, WRONG (not the label) or REACHED (the goal of its attack);
        of a random model, REACHED where an attack says so, by its own draws.
      broken_by: Number of the stage that found the point, if it is worth something; -1.
      counts: Evaluations: `gradients` and `forwards` that the hardware performed,
        `gradients_needed` and `forwards_needed` that an open example waited for; and
        how many breaks were `not_confirmed` when the point was classified again.
    """

    x_adv: np.ndarray
    worth: np.ndarray
    broken_by: np.ndarray
    counts: dict[str, int]

    @classmethod
    def nothing(cls, x: np.ndarray) -> "Found":
        """Return the state before any attack: every example at its clean point."""
        names = ("gradients", "forwards", "gradients_needed", "forwards_needed")
        names = (*names, "not_confirmed")
        none = np.full(len(x), -1, np.int32)
        worth = np.full(len(x), NOTHING, np.int8)
        return cls(x.copy(), worth, none, dict.fromkeys(names, 0))

    def take(
        self, points: "Points", rows: np.ndarray, worth: np.ndarray, number: int
    ) -> None:
        """Take over the points of a stage that are worth more; of the first stage, all."""
        is_more = worth > self.worth[rows]
        is_new = is_more | ((number == 0) & (worth == self.worth[rows]))
        self.x_adv[rows[is_new]] = points.x_adv[rows[is_new]]
        self.worth[rows[is_more]] = worth[is_more]
        self.broken_by[rows[is_more]] = number

    def count(self, cost: Any, performed: int, needed: int) -> None:
        """Add evaluations that cost `cost` each."""
        for name in ("gradients", "forwards"):
            self.counts[name] += getattr(cost, name) * performed
            self.counts[f"{name}_needed"] += getattr(cost, name) * needed


@dataclasses.dataclass
class Points:
    """The points that the running stage has returned, on the host; updated in place.

    Attributes:
      x_adv: `[N, ...]`, the clean point where none was returned.
      loss: Its loss `[N]`.
      is_broken: Whether the stage says that it reaches the goal `[N]`.
    """

    x_adv: np.ndarray
    loss: np.ndarray
    is_broken: np.ndarray

    @classmethod
    def nothing(cls, x: np.ndarray) -> "Points":
        """Return the state before the stage."""
        return cls(
            x.copy(), np.full(len(x), -np.inf, np.float32), np.zeros(len(x), bool)
        )

    def put(self, rows, x_adv, loss, is_broken) -> None:
        """Keep points: one that reaches the goal, then the larger loss."""
        is_first = ~self.is_broken[rows]
        kept = is_first & (is_broken | (loss > self.loss[rows]))
        self.x_adv[rows[kept]] = x_adv[kept]
        self.loss[rows[kept]] = loss[kept]
        self.is_broken[rows[kept]] |= is_broken[kept]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One attack of an evaluation.

    Attributes:
      attack: A state machine, perhaps inside `Restarts` or `Targets`.
      number: Its place among the attacks of the evaluation.
      name: What reports call it.
      keys: One key for each example `[N]`, or None.
      is_queued: Whether examples leave as soon as they are broken.
      y: What the attack takes, leaves `[N, ...]`.
      goal: The loss whose goal says when an example is done.
      goal_y: What that takes.
      admits: Which open examples are worth it `[N]`, from the margins that the earlier
        stages have left `[number, N]` and which are open.
    """

    attack: Any
    number: int
    name: str
    keys: jax.Array | None
    is_queued: bool
    y: Any
    goal: Any
    goal_y: Any
    admits: Callable[[jax.Array, jax.Array], jax.Array]

    @property
    def inner(self) -> Any:
        """The attack that takes the steps."""
        return self.attack.machine

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
