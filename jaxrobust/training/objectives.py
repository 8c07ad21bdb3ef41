"""Objectives: what the outer minimisation minimises, as pure scalar functions.

An objective is a value with the two nested problems as methods, `inner` and `outer`;
called, it returns a scalar for `jax.value_and_grad`. The loop around it stays optax's.
"""

import abc
import dataclasses
from typing import Any, final

import jax
import jax.numpy as jnp
import optax

from jaxrobust import losses
from jaxrobust._core import checks, predictions, pytree, threat_rows
from jaxrobust._core.representation import concise
from jaxrobust.attacks._base import as_attack, check_takes_labels
from jaxrobust.types import Array, LogitsFn, Loss, Threat


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

    threat: Any  # what the adversary may do, checked against the data, or None

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


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class Standard(Objective):
    """The empirical risk (1/n) sum loss(f(x_i), y_i); made by `standard`."""

    loss: Loss = pytree.static(losses.cross_entropy)

    threat = None

    def inner(self, attacked_fn, x, y, *, key, step) -> None:
        """Return None: there is no adversary."""
        del attacked_fn, x, y, key, step

    def outer(self, trained_fn, x, y, found, *, step) -> tuple[Array, dict[str, Array]]:
        """Return the mean loss on clean inputs."""
        del found, step
        return _risk(self.loss, trained_fn(x), y)


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class Adversarial(Objective):
    """The adversarial risk (1/n) sum max_delta loss(f(x_i + delta), y_i).

    Made by `adversarial`.
    """

    attack: Any
    threat: Any  # pyrefly: ignore[bad-override]
    loss: Loss = pytree.static(losses.cross_entropy)
    eps_schedule: optax.Schedule | None = pytree.static(None)

    def inner(self, attacked_fn, x, y, *, key, step) -> Array:
        """Return x_adv = argmax over the threat of the attack's loss."""
        threat = self.threat
        if self.eps_schedule is not None:
            if step is None:
                raise ValueError(
                    "adversarial(eps_schedule=...) needs the number of the training "
                    "step: call the objective with step=step, as jr.training.fit does."
                )
            threat = threat.with_eps(threat.eps * self.eps_schedule(step))
        return self.attack(attacked_fn, x, y, threat=threat, key=key)

    def outer(self, trained_fn, x, y, found, *, step) -> tuple[Array, dict[str, Array]]:
        """Return the mean loss at the attacked inputs."""
        del x, step
        return _risk(self.loss, trained_fn(found), y)


@dataclasses.dataclass(frozen=True, repr=False)
class _Function(Objective):
    """A plain function, whose inner problem nobody can tell apart from its outer one."""

    function: Any
    threat: Any  # pyrefly: ignore[bad-override]

    def inner(self, attacked_fn, x, y, *, key, step) -> Any:
        """Return the attacked model and the key: the function solves both problems."""
        del x, y, step
        return attacked_fn, key

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
    return _Function(objective, getattr(objective, "threat", None))


def standard(loss: Loss = losses.cross_entropy) -> Standard:
    """Return the objective of standard training: the mean loss on clean inputs.

    Empirical risk minimisation, Vapnik 1991.

    Args:
      loss: Per-example loss `(logits, y) -> [B]`.

    Returns:
      An objective `(trained_fn, attacked_fn, x, y, key=None) -> (loss, metrics)`.

    Example:
      >>> import jax.numpy as jnp
      >>> x, y = jnp.ones((1, 2)), jnp.array([0])
      >>> loss, metrics = standard()(lambda x: x, None, x, y)
      >>> print(loss, metrics["accuracy"])
      0.6931472 1.0
    """
    checks.check_loss(loss)
    return Standard(loss)


def adversarial(
    attack: Any,
    threat: Threat,
    loss: Loss = losses.cross_entropy,
    eps_schedule: optax.Schedule | None = None,
) -> Adversarial:
    """Return the objective of adversarial training: the mean loss on attacked inputs.

    Madry et al. 2018, arXiv:1706.06083, eq. (2.1); with `FGSM()`: Goodfellow et al. 2015.

    Args:
      attack: Any attack, e.g. `jr.PGD(num_steps=7)`.
      threat: The threat model, e.g. `jr.Linf(8 / 255)`.
      loss: Per-example loss `(logits, y) -> [B]` that training minimises.
      eps_schedule: Factor on eps by training step. A small network on a large ball stays
        a constant function unless eps grows slowly: `optax.schedules.linear_schedule(0,
        1, 5000)`. Give the attack `rel_step_size`, so that its steps grow too.

    Returns:
      An objective `(trained_fn, attacked_fn, x, y, key=, step=) -> (loss, metrics)`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> objective = adversarial(jr.FGSM(), threat=jr.Linf(0.5, bounds=None))
      >>> def loss(weights):
      ...     frozen = jax.lax.stop_gradient(weights)
      ...     x, y = jnp.ones((1, 2)), jnp.array([0])
      ...     return objective(lambda x: x @ weights, lambda x: x @ frozen, x, y)
      >>> (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(jnp.eye(2))
      >>> print(round(float(value), 3))
      1.313
    """
    attack = as_attack(attack)
    check_takes_labels(attack, "adversarial(attack)")
    checks.check_loss(loss)
    return Adversarial(attack, threat_rows.as_threat(threat), loss, eps_schedule)


def _risk(loss: Loss, logits: Array, y: Array) -> tuple[Array, dict[str, Array]]:
    logits = predictions.wide(logits)
    mean = jnp.mean(loss(logits, y))
    accuracy = jnp.mean(predictions.predict(logits) == y, dtype=jnp.float32)
    return mean, {"loss": mean, "accuracy": accuracy}
