"""The five interfaces of jaxrobust; their docstrings are the specification.

Anything with the right signature takes part: a bare function is a `LogitsFn`, a
`Loss` or an `Attack`. No base class exists and none is needed.
"""

from typing import Any, Protocol, runtime_checkable

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
        """Return a random feasible point for each example; `keys` is `[B]`."""
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


@runtime_checkable
class Objective(Protocol):
    """Outer minimisation: a scalar function for `jax.value_and_grad(..., has_aux=True)`.

    `trained_fn` carries the gradients and is called exactly once (a model in training
    mode may update its batch statistics in that call); `attacked_fn` is the model that
    the adversary sees. Which mode of BatchNorm each of them is in is the caller's choice.
    `step` is the number of the training step, for objectives that follow a schedule.
    """

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
