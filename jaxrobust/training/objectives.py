"""Objectives: what the outer minimisation minimises, as pure scalar functions.

An objective is a value; called, it returns a scalar for `jax.value_and_grad`. The loop
around it stays optax's.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrobust import losses
from jaxrobust._core import checks, predictions, pytree, threat_rows
from jaxrobust._core.representation import concise
from jaxrobust.attacks._base import as_attack, check_takes_labels
from jaxrobust.types import Array, LogitsFn, Loss, Threat


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class Standard:
    """The empirical risk (1/n) sum loss(f(x_i), y_i); made by `standard`."""

    loss: Loss = pytree.static(losses.cross_entropy)

    __repr__ = concise

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
        """Return the mean loss and metrics; see `jaxrobust.types.Objective`."""
        del attacked_fn, key, step
        return _risk(self.loss, trained_fn(x), y)


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class Adversarial:
    """The adversarial risk (1/n) sum max_delta loss(f(x_i + delta), y_i).

    Made by `adversarial`.
    """

    attack: Any
    threat: Any
    loss: Loss = pytree.static(losses.cross_entropy)
    eps_schedule: optax.Schedule | None = pytree.static(None)

    __repr__ = concise

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
        """Return the mean loss at the attacked inputs; see `jaxrobust.types.Objective`."""
        threat = self.threat
        if self.eps_schedule is not None:
            if step is None:
                raise ValueError(
                    "adversarial(eps_schedule=...) needs the number of the training "
                    "step: call the objective with step=step, as jr.training.fit does."
                )
            eps = threat.eps * self.eps_schedule(step)
            threat = threat.with_eps(eps)
        x_adv = self.attack(attacked_fn, x, y, threat=threat, key=key)
        # Danskin: the gradient of the maximum is the gradient at the maximiser, held fixed.
        return _risk(self.loss, trained_fn(jax.lax.stop_gradient(x_adv)), y)


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
