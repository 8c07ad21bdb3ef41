"""The contracts of jaxrobust; their docstrings are the specification.

Anything with the right signature takes part: a bare function is a `LogitsFn`, a
`Loss`, an `Attack` or an `Objective`. What a driver (the evaluation, a wrapper, a picture)
reads is declared here, and nothing else is read.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

Array = jax.Array
PyTree = Any


@runtime_checkable
class LogitsFn(Protocol):
    """A classifier: a pure function from inputs `[B, ...]` to logits `[B, C]`.

    Logits, not probabilities. Example i's logits may depend on example i alone (a model
    in evaluation mode). Normalisation of the inputs belongs inside, so that `eps`
    is in the units of the data. A callable pytree (`jax.tree_util.Partial(apply,
    params)`, an Equinox module) passes its arrays as arguments to compiled code; a plain
    closure is compiled again when the arrays that it captures are replaced.
    """

    def __call__(self, x: Array, /) -> Array: ...


@runtime_checkable
class Loss(Protocol):
    """A per-example loss `(logits [B, C], y) -> [B]` that attacks maximise.

    `y` is what the loss says that it takes, by an attribute `takes` (one of the constants
    in `jaxrobust.losses`): labels `[B]` for most, targets `[B]`, the clean logits
    `[B, C]` for `kl`, a pair of labels and targets for `dlr_targeted`. One without it
    takes anything.
    """

    def __call__(self, logits: Array, y: Any, /) -> Array: ...


@runtime_checkable
class Threat(Protocol):
    """What the adversary may do to `x [B, ...]`: a norm ball, cut by bounds and a mask.

    Every method works on batches, each example by itself. `eps` is a scalar or `[B]`. A
    threat that is a pytree passes its numbers as arguments to compiled code; of any other
    they are part of the program, which is compiled again for another value.
    """

    @property
    def order(self) -> float | None:
        """The p of the norm of the ball (inf, 2, 1), None where it has none."""
        ...

    @property
    def eps(self) -> Any:
        """Radius of the ball in the units of the data, a scalar or `[B]`."""
        ...

    @property
    def bounds(self) -> Any:
        """`(lower, upper)` of valid data, scalars or arrays, or None."""
        ...

    @property
    def mask(self) -> Any:
        """What may be perturbed (non-zero), or None for all."""
        ...

    def project(self, x_adv: Array, x: Array) -> Array:
        """Return the feasible point around `x` that is nearest to `x_adv`."""
        ...

    def steepest(self, grad: Array, x: Array, step_size: Any) -> Array:
        """Return the `delta` of norm at most `step_size` that maximises <grad, delta>.

        `step_size` is a scalar or `[B]`, as `eps`.
        """
        ...

    def sample(self, keys: Array, x: Array) -> Array:
        """Return a random feasible point for each example.

        `keys` is `[B]`; draw from `fold_in(key, 0)`, since others derive keys from them.
        """
        ...

    def distance(self, x_adv: Array, x: Array) -> Array:
        """Return the norm of `x_adv - x` for each example, `[B]`."""
        ...

    def with_eps(self, eps: Any) -> "Threat":
        """Return the same threat with another radius."""
        ...


@runtime_checkable
class Attack(Protocol):
    """Inner maximisation: returns `x_adv` inside `threat` around `x`, of large loss.

    `key` is one typed PRNG key, or one for each example `[B]`; a deterministic attack
    needs none. Example i's result depends on `x[i]`, `y[i]` and its own key alone.
    """

    def __call__(
        self,
        logits_fn: LogitsFn,
        x: Array,
        y: Any,
        *,
        threat: Threat,
        key: Array | None = None,
    ) -> Array: ...


class Outcome(NamedTuple):
    """All that a driver may know of the state of a `Stepped` attack; leaves `[B, ...]`."""

    x_adv: Array
    """The point to return now, inside the threat."""
    is_broken: Array
    """`[B]` bool, whether the goal is known to be reached at `x_adv`."""
    score: Array
    """`[B]`, orders the results of one attack: larger is better for the adversary."""
    is_over: Array
    """`[B]` bool, whether nothing will change any more."""
    distance: Array
    """`[B]`, of the nearest break found at any distance, in the norm of the threat; inf."""


class Guided(NamedTuple):
    """What an attack takes that moves towards a class while any wrong one counts.

    The guide is what the loss climbs towards, the goal any class but the label. "Targeted"
    is said of an attack whose goal is the class itself; it takes that class alone.
    """

    labels: Any
    guide: Any


@runtime_checkable
class Stepped(Protocol):
    """An attack as a state machine over examples; `jaxrobust.attacks.Stepped` is its base.

    Every leaf of the state has the batch axis first, and example i of the next state
    depends on example i of this one alone, so that a driver may put another example in the
    place of one that is done. What follows from the members (the call with its
    checks, the loop, the total cost, the items of wrappers) the base class has.
    """

    @property
    def access(self) -> str:
        """What it uses of the model: "gradients", "scores" or "decisions"."""
        ...

    @property
    def papers(self) -> tuple[str, ...]:
        """What to cite: keys of `references.bib`, or whole BibTeX entries."""
        ...

    @property
    def needs_key(self) -> bool:
        """Whether it draws random numbers."""
        ...

    @property
    def num_calls(self) -> int:
        """How many calls of `step` make the state final."""
        ...

    def cost(self, num_classes: int) -> Any:
        """Return the gradients and forwards of one call of `step`."""
        ...

    def init(
        self, x: Array, y: Any, *, threat: Threat, keys: Any, start: Array | None = None
    ) -> Any:
        """Return the state at the first point, or at `start`; evaluates nothing."""
        ...

    def step(self, logits_fn: LogitsFn, state: Any, *, threat: Threat) -> Any:
        """Return the state after one step of every example."""
        ...

    def outcome(self, state: Any, *, threat: Threat) -> Outcome:
        """Return what a driver may know of the state; evaluates nothing."""
        ...


@runtime_checkable
class Gradient(Protocol):
    """How `fit` differentiates an objective; by default `jax.value_and_grad`.

    `loss_fn(params) -> (loss, aux)`, where the attack has been crafted already and is held
    fixed. AWP and SAM take two gradients of it, the second at perturbed parameters.
    """

    def __call__(
        self, loss_fn: Callable[[PyTree], tuple[Array, Any]], params: PyTree, /
    ) -> tuple[tuple[Array, Any], PyTree]: ...


@runtime_checkable
class Certificate(Protocol):
    """An upper bound of the largest margin in the threat, `[B]`; below 0 it is proven.

    The margin is the largest wrong logit minus that of the label. An example that is both
    certified and broken is a bug of the library, and the audit of a report looks for it.
    """

    def __call__(
        self,
        logits_fn: LogitsFn,
        x: Array,
        y: Array,
        *,
        threat: Threat,
        key: Array | None = None,
    ) -> Array: ...


@runtime_checkable
class Objective(Protocol):
    """The two nested problems; called, a scalar function for `jax.value_and_grad`.

    `inner` maximises: what it returns is held fixed (Danskin). `outer` is differentiated in
    `trained_fn`, a model in training mode whose batch statistics its last call updates;
    `attacked_fn` is the model that the adversary sees. Which mode of BatchNorm each of them
    is in is the caller's choice. `step` is the number of the training step, for schedules.

    `jaxrobust.training.Objective` is the base class. A plain function with the signature of
    `__call__` is an objective too; its attack is crafted anew at each evaluation.
    """

    @property
    def threat(self) -> Any:
        """What the adversary may do, checked against the data; a tuple, one, or None."""
        ...

    def inner(
        self, attacked_fn: LogitsFn, x: Array, y: Array, *, key: Any, step: Any
    ) -> Any:
        """Return what the adversary has found."""
        ...

    def outer(
        self, trained_fn: LogitsFn, x: Array, y: Array, found: Any, *, step: Any
    ) -> tuple[Array, dict[str, Array]]:
        """Return the loss to minimise, and metrics."""
        ...

    def __call__(
        self,
        trained_fn: LogitsFn,
        attacked_fn: LogitsFn,
        x: Array,
        y: Array,
        *,
        key: Array | None = None,
        step: Array | None = None,
    ) -> tuple[Array, dict[str, Array]]: ...
