"""Objectives: what the outer minimisation minimises, as pure scalar functions.

An objective is a value with the two nested problems as methods, `inner` and `outer`;
called, it returns a scalar for `jax.value_and_grad`. The loop around it stays optax's.
"""

import abc
import dataclasses
from collections.abc import Iterable
from typing import Any, final

import jax
import jax.numpy as jnp

from jaxrobust._core import batching, predictions
from jaxrobust._core.representation import concise
from jaxrobust.types import Array, LogitsFn, Loss


class Objective(abc.ABC):
    """The two nested problems, visible in the code; see `jaxrobust.types.Objective`.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> objective = jr.training.adversarial(jr.FGSM(), jr.Linf(0.25))
      >>> model, x, y = (lambda x: 9 * x), jnp.full((1, 2), 0.5), jnp.array([0])
      >>> found = objective.inner(model, x, y, key=None, step=None)
      >>> loss, metrics = objective.outer(model, x, y, found, step=None)
      >>> print(found, metrics["accuracy"])
      [[0.25 0.75]] 0.0
    """

    __repr__ = concise

    threat: Any  # checked against the data; a tuple of several, or None

    @abc.abstractmethod
    def inner(
        self, attacked_fn: LogitsFn, x: Array, y: Array, *, key: Any, step: Any
    ) -> Any:
        """Return what the adversary has found; held fixed in the outer problem."""

    @abc.abstractmethod
    def outer(
        self, trained_fn: LogitsFn, x: Array, y: Array, found: Any, *, step: Any
    ) -> tuple[Array, dict[str, Array]]:
        """Return the scalar to minimise, and metrics."""

    @final
    def __call__(
        self,
        trained_fn: LogitsFn,
        attacked_fn: LogitsFn,
        x: Array,
        y: Array,
        *,
        key: Array | None = None,
        step: Array | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Return loss and metrics of a step, for `jax.value_and_grad(..., has_aux=True)`.

        Args:
          trained_fn: The model that carries the gradients.
          attacked_fn: The model that the adversary sees.
          x: Inputs `[B, ...]`.
          y: Labels `[B]`.
          key: A typed PRNG key, where the attack draws random numbers.
          step: Number of the training step, for schedules.
        """
        found = self.inner(attacked_fn, x, y, key=key, step=step)
        # Danskin: the gradient of the maximum is the gradient at the maximiser, held fixed.
        return self.outer(trained_fn, x, y, jax.lax.stop_gradient(found), step=step)


@dataclasses.dataclass(frozen=True, repr=False)
class _Function(Objective):
    """A plain function, whose inner problem nobody can tell apart from its outer one."""

    function: Any
    threat: Any  # pyrefly: ignore[bad-override]

    def inner(self, attacked_fn, x, y, *, key, step) -> Any:
        """Return the attacked model and the key: the function solves both problems."""
        del x, y, step
        # As a pytree: what is found is held fixed, leaf by leaf.
        return batching.as_pytree(attacked_fn), key

    def outer(self, trained_fn, x, y, found, *, step) -> tuple[Array, dict[str, Array]]:
        """Return what the function returns."""
        attacked_fn, key = found
        return self.function(trained_fn, attacked_fn, x, y, key=key, step=step)


def as_objective(objective: Any) -> Objective:
    """Return an objective as one of ours; a function is adopted at this door.

    Example:
      >>> import jaxrobust as jr
      >>> as_objective(jr.training.standard()).threat is None
      True
    """
    if isinstance(objective, Objective):
        return objective
    if not callable(objective):
        raise TypeError(
            f"{objective!r} is not an objective: pass one such as jr.training.standard(), "
            "or a function (trained_fn, attacked_fn, x, y, *, key, step) that returns "
            "(loss, metrics)."
        )
    return _Function(objective, getattr(objective, "threat", None))


def threats_of(objectives: Iterable[Any]) -> tuple[Any, ...]:
    """Return the threats of all objectives, one by one: each has a tuple, one, or None.

    Example:
      >>> import jaxrobust as jr
      >>> standard, threat = jr.training.standard(), jr.Linf(0.1)
      >>> print(threats_of([standard, jr.training.adversarial(jr.FGSM(), threat)]))
      (Linf(0.1),)
    """
    own = (objective.threat for objective in objectives)
    nested = (threat if type(threat) is tuple else (threat,) for threat in own)
    return tuple(threat for some in nested for threat in some if threat is not None)


def risk(loss: Loss, logits: Array, y: Array) -> tuple[Array, dict[str, Array]]:
    """Return the mean loss, and metrics."""
    logits = predictions.wide(logits)
    mean = jnp.mean(loss(logits, y))
    return mean, {"loss": mean, "accuracy": accuracy(logits, y)}


def accuracy(logits: Array, y: Array) -> Array:
    """Return the fraction that is classified correctly."""
    return jnp.mean(predictions.predict(logits) == y, dtype=jnp.float32)
