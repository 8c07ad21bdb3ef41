"""TRADES: clean accuracy, and predictions that do not change in the ball."""

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
class Trades(Attacked):
    """loss(f(x), y) + beta KL(p(x) || p(x_adv)); made by `trades`."""

    beta: Any
    loss: Loss = pytree.static(losses.cross_entropy)

    def outer(self, trained_fn, x, y, found, *, step) -> tuple[Array, dict[str, Array]]:
        """Return the mean loss on clean inputs plus beta times the mean divergence."""
        clean, attacked = (predictions.wide(trained_fn(z)) for z in (x, found))
        natural = jnp.mean(self.loss(clean, y))
        gap = jnp.mean(losses.kl(attacked, clean))
        total = natural + at(self.beta, step, "beta") * gap
        return total, {
            "loss": total,
            "accuracy": accuracy(attacked, y),
            "clean_accuracy": accuracy(clean, y),
            "kl": gap,
        }


def trades(
    attack: Any,
    threat: Threat,
    beta: float | optax.Schedule = 6.0,
    *,
    loss: Loss = losses.cross_entropy,
    eps_schedule: optax.Schedule | None = None,
) -> Trades:
    """Return the objective of TRADES: CE(f(x), y) + beta KL(p(x) || p(x_adv)).

    Zhang et al. 2019, arXiv:1901.08573, eq. (5). The inner problem there maximises the same
    divergence: give an attack with `jr.losses.kl`, which gets the clean logits. At `x` its
    gradient is zero, so that it must start elsewhere: ours starts at random in the ball,
    the published code at x + 0.001 N(0, 1). An attack on labels is given labels.

    With an `eps_schedule` that grows over the whole run and an attack of 2 steps with
    `rel_step_size=1`, it is ACAT (Addepalli et al. 2022).

    A step costs the attack, a forward pass for the clean logits of the attacked model, and
    two gradients: `trained_fn` is called with the clean and then with the attacked inputs.

    Args:
      attack: The attack, e.g. `jr.PGD(num_steps=10, loss=jr.losses.kl)`.
      threat: The threat model, e.g. `jr.Linf(8 / 255)`.
      beta: Weight of the divergence, at least 0, or a schedule step -> beta. The paper has
        6 for CIFAR-10 and 1 for MNIST.
      loss: Per-example loss `(logits, y) -> [B]` of the clean inputs.
      eps_schedule: Factor on eps by training step, see `adversarial`.

    Returns:
      An objective `(trained_fn, attacked_fn, x, y, key=, step=) -> (loss, metrics)`.

    Raises:
      ValueError: If beta is negative, or an attack by `kl` starts at x, where it cannot
        move.
      TypeError: If the attack takes targets.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> attack = jr.PGD(num_steps=10, loss=jr.losses.kl)
      >>> objective = trades(attack, jr.Linf(0.5, bounds=None), beta=6.0)
      >>> x, y = jnp.array([[2.0, 0.0]]), jnp.array([0])
      >>> model = lambda x: x
      >>> loss, metrics = objective(model, model, x, y, key=jax.random.key(0))
      >>> print(f"{metrics['kl']:.3f} {loss:.3f}")
      0.067 0.530
    """
    attack, threat = as_adversary(attack, threat, "trades")
    checks.check_loss(loss)
    beta = as_weight(beta, "beta")
    return Trades(attack, threat, beta, loss, eps_schedule=eps_schedule)
