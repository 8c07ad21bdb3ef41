"""Adversarial logit pairing: clean and attacked inputs with the same logits."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import optax

from jaxrobust import losses
from jaxrobust._core import checks, predictions, pytree
from jaxrobust.training.attacked import Attacked, as_adversary, as_weight, at
from jaxrobust.training.objectives import accuracy
from jaxrobust.types import Array, Loss, Threat


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class Alp(Attacked):
    """(loss(f(x), y) + loss(f(x_adv), y)) / 2 + weight (f(x) - f(x_adv))^2; by `alp`."""

    weight: Any
    loss: Loss = pytree.static(losses.cross_entropy)

    def outer(self, trained_fn, x, y, found, *, step) -> tuple[Array, dict[str, Array]]:
        """Return the mean loss of both batches plus the weighted mean square."""
        logits = predictions.wide(trained_fn(jnp.concatenate([x, found])))
        clean, attacked = jnp.split(logits, 2)
        mean = (self.loss(clean, y).mean() + self.loss(attacked, y).mean()) / 2
        pairing = jnp.mean((clean - attacked) ** 2)
        total = mean + at(self.weight, step, "weight") * pairing
        return total, {
            "loss": total,
            "accuracy": accuracy(attacked, y),
            "clean_accuracy": accuracy(clean, y),
            "pairing": pairing,
        }


def alp(
    attack: Any,
    threat: Threat,
    weight: float | optax.Schedule = 0.5,
    *,
    loss: Loss = losses.cross_entropy,
    eps_schedule: optax.Schedule | None = None,
) -> Alp:
    """Return the objective of adversarial logit pairing, on clean and attacked inputs.

    Kannan et al. 2018, arXiv:1803.06373, eq. (1): the mean cross-entropy of clean and
    attacked inputs plus weight times the mean square of f(x) - f(x_adv), over examples and
    classes as in the published code. It flattens the loss around the data, which stops
    weak attacks (Engstrom et al. 2018, arXiv:1807.10272): judge it by `jr.autoattack`.

    A step costs the attack and one gradient at twice the batch: `trained_fn` is called
    once, with the clean and the attacked inputs together, so that BatchNorm sees both.

    Args:
      attack: Any attack, e.g. `jr.PGD(num_steps=10)`.
      threat: The threat model, e.g. `jr.Linf(8 / 255)`.
      weight: Weight of the square, at least 0, or a schedule step -> weight.
      loss: Per-example loss `(logits, y) -> [B]`.
      eps_schedule: Factor on eps by training step, see `adversarial`.

    Returns:
      An objective `(trained_fn, attacked_fn, x, y, key=, step=) -> (loss, metrics)`.

    Raises:
      ValueError: If the weight is negative, or an attack by `kl` starts at x.
      TypeError: If the attack takes targets.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> objective = alp(jr.FGSM(), jr.Linf(0.5, bounds=None), weight=1.0)
      >>> x, y = jnp.array([[2.0, 0.0]]), jnp.array([0])
      >>> loss, metrics = objective(lambda x: x, lambda x: x, x, y)
      >>> print(f"{metrics['pairing']:.3f} {loss:.3f}")
      0.250 0.470
    """
    attack, threat = as_adversary(attack, threat, "alp")
    checks.check_loss(loss)
    weight = as_weight(weight, "weight")
    return Alp(attack, threat, weight, loss, eps_schedule=eps_schedule)
