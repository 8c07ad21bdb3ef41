"""HAT: helper examples beyond the boundary keep the margin from growing too large."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrobust import losses
from jaxrobust._core import batching, model_checks, predictions, pytree
from jaxrobust.training.attacked import (
    Attacked,
    as_adversary,
    as_weight,
    at,
    check_classes,
)
from jaxrobust.training.objectives import accuracy
from jaxrobust.types import Array, LogitsFn, Threat


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class Hat(Attacked):
    """TRADES + gamma CE(f(x + h (x_adv - x)), label of the helper); made by `hat`."""

    helper_fn: Any
    beta: Any
    gamma: Any
    h: Any

    def inner(self, attacked_fn, x, y, *, key, step) -> tuple[Array, Array]:
        """Return x_adv, and what the helper takes it for."""
        x_adv = super().inner(attacked_fn, x, y, key=key, step=step)
        helped = self.helper_fn(x_adv)
        check_classes(helped, jax.eval_shape(attacked_fn, x), "helper_fn")
        return x_adv, jnp.argmax(predictions.wide(helped), -1)

    def outer(self, trained_fn, x, y, found, *, step) -> tuple[Array, dict[str, Array]]:
        """Return the TRADES loss plus gamma times the mean loss on the helper examples."""
        x_adv, helper_labels = found
        h = at(self.h, step, "h")
        x_helper = (x + h * (x_adv - x)).astype(
            x.dtype
        )  # in no bounds, as in the paper
        clean, attacked, helped = (
            predictions.wide(trained_fn(z)) for z in (x, x_adv, x_helper)
        )
        gap = jnp.mean(losses.kl(attacked, clean))
        total = (
            jnp.mean(losses.cross_entropy(clean, y))
            + at(self.beta, step, "beta") * gap
            + at(self.gamma, step, "gamma")
            * jnp.mean(losses.cross_entropy(helped, helper_labels))
        )
        return total, {
            "loss": total,
            "accuracy": accuracy(attacked, y),
            "clean_accuracy": accuracy(clean, y),
            "helper_accuracy": accuracy(helped, helper_labels),
        }


def hat(
    attack: Any,
    threat: Threat,
    helper_fn: LogitsFn,
    beta: float | optax.Schedule = 2.5,
    gamma: float | optax.Schedule = 0.5,
    h: float | optax.Schedule = 2.0,
    *,
    eps_schedule: optax.Schedule | None = None,
) -> Hat:
    """Return the objective of helper-based adversarial training: TRADES and a third term.

    Rade & Moosavi-Dezfooli 2022, "Reducing Excessive Margin to Achieve a Better Accuracy
    vs. Robustness Trade-off" (ICLR): CE(f(x), y) + beta KL(p(x) || p(x')) + gamma
    CE(f(x + h (x' - x)), argmax f_std(x')). The helper f_std is a standard model: at x' it
    mostly errs, so that the boundary is drawn to lie between x' and the helper example.

    A step costs the attack, two forward passes (clean logits for an attack by `kl`, and
    the helper) and three gradients: `trained_fn` is called with clean, attacked and helper
    inputs, in this order.

    Args:
      attack: The attack, e.g. `jr.PGD(num_steps=10, loss=jr.losses.kl)`.
      threat: The threat model, e.g. `jr.Linf(8 / 255)`.
      helper_fn: A model from standard training, in evaluation mode, as a function
        `[B, ...] -> [B, C]`, e.g. `jr.models.logits_fn(model)`; it is not trained.
      beta: Weight of the divergence, at least 0, or a schedule step -> beta.
      gamma: Weight of the helper examples, or a schedule.
      h: How far from `x` the helper examples are, in units of the perturbation, or a
        schedule.
      eps_schedule: Factor on eps by training step, see `adversarial`.

    Returns:
      An objective `(trained_fn, attacked_fn, x, y, key=, step=) -> (loss, metrics)`.

    Raises:
      ValueError: If a weight is negative, the helper has other classes, or an attack by
        `kl` starts at x.
      TypeError: If the attack takes targets, or the helper is not a function.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> helper = lambda x: x @ jnp.array([[-1.0, 1.0], [1.0, -1.0]])
      >>> objective = hat(jr.FGSM(), jr.Linf(0.5, bounds=None), helper)
      >>> x, y = jnp.array([[2.0, 0.0]]), jnp.array([0])
      >>> found = objective.inner(lambda x: x, x, y, key=None, step=None)
      >>> print(*found)
      [[1.5 0.5]] [1]
    """
    attack, threat = as_adversary(attack, threat, "hat")
    model_checks.check_callable(helper_fn)
    return Hat(
        attack,
        threat,
        batching.as_pytree(helper_fn),
        as_weight(beta, "beta"),
        as_weight(gamma, "gamma"),
        as_weight(h, "h"),
        eps_schedule=eps_schedule,
    )
