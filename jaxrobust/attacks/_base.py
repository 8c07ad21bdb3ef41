"""What an attack declares, and what follows from that; written once, for all of them.

Two kinds: `Stepped`, a state machine over examples, and what is made of attacks
(`Restarts`, `Targets`, `WorstOf`, `autoattack`). Any other callable with the signature of
an attack is adopted at the door, `as_attack`; nothing behind it asks what an attack has.
"""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple, final

import jax

from jaxrobust import losses
from jaxrobust._core import batching, checks, pytree
from jaxrobust._core.representation import concise, text
from jaxrobust.attacks import _call
from jaxrobust.attacks.cost import Cost
from jaxrobust.types import Array, LogitsFn, Loss, Outcome, Threat


class Attack(abc.ABC):
    """An inner maximisation as a value, a frozen dataclass; see `types.Attack`.

    Example:
      >>> import jaxrobust as jr
      >>> attack = jr.Restarts(jr.PGD(num_steps=5), 2)
      >>> print(isinstance(attack, jr.attacks.Attack), attack.takes, attack.machine)
      True labels PGD(num_steps=5)
    """

    __repr__ = concise

    @property
    def papers(self) -> tuple[str, ...]:
        """What to cite: keys of `references.bib`, or whole BibTeX entries."""
        return ()

    @property
    @abc.abstractmethod
    def takes(self) -> str:
        """What `y` is, one of the constants in `jaxrobust.losses`."""

    @property
    @abc.abstractmethod
    def goal(self) -> Loss:
        """The loss whose goal is the attack's, and by which results are compared."""

    @property
    @abc.abstractmethod
    def needs_key(self) -> bool:
        """Whether a key must be given."""

    @property
    def allows_any_distance(self) -> bool:
        """Whether `eps` may be infinite: what it looks for is the nearest point."""
        return False

    @property
    def instead_of_a_key(self) -> str:
        """How to do without a key, for the message that one is missing."""
        return ""

    @abc.abstractmethod
    def total_cost(self, num_classes: int = 10) -> Cost | None:
        """Return the evaluations for an example that nothing breaks; None if unknown."""

    @abc.abstractmethod
    def run(self, logits_fn: LogitsFn, x: Array, y: Any, threat: Threat, keys) -> Array:
        """Return `x_adv` without checks; `keys` is `[B]` or None."""

    @property
    def machine(self) -> "Stepped | None":
        """The attack whose `step` moves the items, and which may end at its best point.

        None where there is not one: the attack is run to its end on every example.
        """
        return None

    def parts(self, y: Any, threat: Threat) -> tuple[tuple["Attack", Any], ...]:
        """Return the attacks that this one is made of, with what each is given as `y`."""
        return ()

    def stages(self, *, threat: Threat) -> tuple[tuple[str, "Attack"], ...]:
        """Return name and attack of what an evaluation runs one after the other."""
        return ((repr(self), self),)

    def admits(self, number: int, margins: Array, is_open: Array) -> Array:
        """Return which open examples are worth the stage `number`, `[N]`; by default all.

        It is asked once, before the stage, of all examples together: what depends on them
        all does not depend on their order or on batches.

        Args:
          number: That of the stage, from 0.
          margins: What the earlier stages have left `[number, N]`, -inf where one has not
            attacked: the largest wrong logit less the label's.
          is_open: Which are not broken `[N]`.
        """
        del number, margins
        return is_open

    def losses_with_y(self, y: Any, threat: Threat) -> list[tuple[Loss, Any]]:
        """Return every loss inside the attack, with what it is given as `y`."""
        inner = (
            part.losses_with_y(given, threat) for part, given in self.parts(y, threat)
        )
        return [pair for pairs in inner for pair in pairs]

    def num_items(self, num_classes: int) -> int:
        """Return how many runs of `machine` the attack asks for: restarts, targets."""
        return 1

    def init_item(
        self,
        x: Array,
        y: Any,
        logits: Array,
        item: Array,
        *,
        threat: Threat,
        keys: Any,
        start: Array | None = None,
    ) -> Any:
        """Return the state of `machine` at the start of each example's item.

        Stepping it to its end gives what `run` computes for that restart and target; a
        driver may give each example of a batch another item, the outermost wrapper
        counting slowest. Evaluates nothing.

        Args:
          x: Clean inputs `[B, ...]`.
          y: What the attack takes.
          logits: Clean logits `[B, C]`, from which targets are chosen.
          item: `[B]` int32, `0 <= item < num_items(C)`.
          threat: The threat model.
          keys: `[B]` keys of the whole attack; those of the items are derived from them.
          start: Where to begin `[B, ...]` instead; of several restarts, the first.
        """
        assert self.machine is not None
        return self.machine.init(x, y, threat=threat, keys=keys, start=start)

    @final
    def __call__(
        self,
        logits_fn: LogitsFn,
        x: Array,
        y: Any,
        *,
        threat: Threat,
        key: Array | None = None,
    ) -> Array:
        """Return adversarial examples `x_adv [B, ...]` inside `threat` around `x`.

        Args:
          logits_fn: Pure function from inputs `[B, ...]` to logits `[B, C]`.
          x: Clean inputs `[B, ...]`, floating point, inside the bounds of the threat.
          y: What the attack takes, labels `[B]` by default.
          threat: `Linf`, `L2`, `L1` or any value with their methods.
          key: A typed PRNG key, or one for each example `[B]`.

        Returns:
          `[B, ...]`; no gradient flows through it.

        Raises:
          ValueError, TypeError: On misuse, with advice.
        """
        check_takes_one(as_attack(self))
        return _call.call(self, logits_fn, x, y, threat=threat, key=key)


class OfLoss(Attack):
    """An attack that maximises one loss, which says what it takes and what its goal is."""

    @property
    def loss(self) -> Loss:
        """The loss that it maximises; a field of most."""
        return losses.margin

    @property
    def takes(self) -> str:
        return losses.takes(self.loss)

    @property
    def goal(self) -> Loss:
        return self.loss

    def losses_with_y(self, y: Any, threat: Threat) -> list[tuple[Loss, Any]]:
        return [(self.loss, y)]


class Stepped(OfLoss):
    """An attack that is a state machine over examples; see `types.Stepped`.

    A subclass declares `num_calls` and `cost`, and defines `init`, `step` and `outcome`.

    Attributes:
      access: What of the model it uses: "gradients", "scores" or "decisions".

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> attack, x, y = jr.FAB(num_steps=10), jnp.array([[0.75, 0.25]]), jnp.array([0])
      >>> state = attack.init(x, y, threat=jr.Linf(0.3), keys=None)
      >>> state = attack.scan(lambda x: x, state, jr.Linf(0.3))
      >>> print(attack.outcome(state, threat=jr.Linf(0.3)).distance.round(2))
      [0.25]
    """

    access: ClassVar[str] = "gradients"

    @property
    def is_evaluated(self) -> bool:
        """Whether `outcome` speaks of the very point; if not, a driver classifies it."""
        return True

    @property
    @abc.abstractmethod
    def num_calls(self) -> int:
        """Number of calls of `step` until the state is final."""

    @abc.abstractmethod
    def cost(self, num_classes: int) -> Cost:
        """Return the evaluations of one call of `step`."""

    @abc.abstractmethod
    def init(
        self, x: Array, y: Any, *, threat: Threat, keys: Any, start: Array | None = None
    ) -> Any:
        """Return the state at the first point, or at `start`; evaluates nothing."""

    @abc.abstractmethod
    def step(self, logits_fn: LogitsFn, state: Any, *, threat: Threat) -> Any:
        """Return the state after one step of every example."""

    @abc.abstractmethod
    def outcome(self, state: Any, *, threat: Threat) -> Outcome:
        """Return what a driver may know of a state; evaluates nothing."""

    def iterate(self, state: Any, *, threat: Threat) -> Array:
        """Return the current point of the search, inside the threat, best or not."""
        return self.outcome(state, threat=threat).x_adv

    @property
    def machine(self) -> "Stepped | None":
        return self

    def total_cost(self, num_classes: int = 10) -> Cost | None:
        return self.cost(num_classes) * self.num_calls

    def run(self, logits_fn: LogitsFn, x: Array, y: Any, threat: Threat, keys) -> Array:
        state = self.scan(logits_fn, self.init(x, y, threat=threat, keys=keys), threat)
        return self.outcome(state, threat=threat).x_adv

    @final
    def scan(
        self,
        logits_fn: LogitsFn,
        state: Any,
        threat: Threat,
        num_calls: int | None = None,
    ) -> Any:
        """Return the state after `num_calls` steps, by default all."""

        def body(state: Any, _: None) -> tuple[Any, None]:
            return self.step(logits_fn, state, threat=threat), None

        length = self.num_calls if num_calls is None else num_calls
        return jax.lax.scan(body, state, length=length)[0]


# How attacks do without a key whose start alone is drawn.
FROM_X = ", or choose random_start=False"

# What a composition takes whose parts take different things.
MIXED = "labels in one part and something else in another"


def check_count(attack: Attack, name: str) -> None:
    """Raise where a setting is no number of steps, runs or the like."""
    count = getattr(attack, name)
    if not isinstance(count, int) or count < 1:
        raise ValueError(
            f"{type(attack).__name__}({name}={count!r}): a whole number of at least 1 is "
            f"needed; {name} is static, so a traced value cannot be used."
        )


def check_takes_one(attack: Attack) -> None:
    """Raise for a composition that takes no single `y`."""
    if attack.takes == MIXED:
        raise TypeError(
            f"{attack!r} holds attacks that take different things as y: labels in one "
            "part, targets or the like in another. Use jr.evaluate(..., y, target=...), "
            "which gives each part its own, or attacks that take the same."
        )


def check_takes_labels(attack: Attack, name: str) -> None:
    """Raise where an attack takes something else than the labels that it will be given."""
    if attack.takes not in (losses.LABELS, losses.ANYTHING):
        raise TypeError(
            f"{name}={attack!r} takes {attack.takes}, and is given labels here: it would "
            "climb towards them. Choose a loss on labels, such as "
            "jr.losses.cross_entropy, or wrap what takes pairs in jr.Targets."
        )


def as_attack(attack: Any) -> Attack:
    """Return an attack as one of ours; the door, and the only place that asks.

    Example:
      >>> import jax.numpy as jnp
      >>> def zero(logits_fn, x, y, *, threat, key=None):
      ...   return threat.project(jnp.zeros_like(x), x)
      >>> print(as_attack(zero).takes, as_attack(zero).total_cost())
      anything None
    """
    checks.check_attack(attack)
    if not isinstance(attack, Attack):
        says = _Says(
            getattr(attack, "takes", losses.ANYTHING),
            getattr(attack, "loss", None),
            getattr(attack, "needs_key", False),
            tuple(getattr(attack, "papers", ())),
        )
        return Function(batching.as_pytree(attack), says)
    if any(leaf is attack for leaf in jax.tree.leaves(attack)):
        # A user's class that is not a pytree: its settings are part of the program.
        jax.tree_util.register_static(type(attack))
    return attack


class _Says(NamedTuple):
    """What a callable may say of itself."""

    takes: str
    loss: Loss | None
    needs_key: bool
    papers: tuple[str, ...]


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class Function(Attack):
    """A callable with the signature of an attack, and what it says of itself."""

    function: Any
    says: _Says = pytree.static()

    allows_any_distance = True  # it is its business

    takes = property(lambda self: self.says.takes)
    needs_key = property(lambda self: self.says.needs_key)
    papers = property(lambda self: self.says.papers)

    def __repr__(self) -> str:
        return text(self.function)

    @property
    def goal(self) -> Loss:
        return self.says.loss or losses.margin

    def losses_with_y(self, y: Any, threat: Threat) -> list[tuple[Loss, Any]]:
        return [] if self.says.loss is None else [(self.says.loss, y)]

    def total_cost(self, num_classes: int = 10) -> Cost | None:
        return None

    def run(self, logits_fn: LogitsFn, x: Array, y: Any, threat: Threat, keys) -> Array:
        return self.function(logits_fn, x, y, threat=threat, key=keys)
