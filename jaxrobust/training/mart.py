"""MART: what is misclassified already matters most."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrobust import losses
from jaxrobust._core import predictions, pytree
from jaxrobust.training.attacked import Attacked, as_adversary, as_weight, at
from jaxrobust.training.objectives import accuracy
from jaxrobust.types import Array, Threat


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class Mart(Attacked):
    """BCE(p(x_adv), y) + beta KL(p(x) || p(x_adv)) (1 - p_y(x)); made by `mart`."""

    beta: Any

    def outer(self, trained_fn, x, y, found, *, step) -> tuple[Array, dict[str, Array]]:
        """Return the mean of the boosted loss and of the weighted divergence."""
        clean, attacked = (predictions.wide(trained_fn(z)) for z in (x, found))
        boosted = losses.cross_entropy(attacked, y) + _margin_term(attacked, y)
        weight = -jnp.expm1(-losses.cross_entropy(clean, y))  # 1 - p_y(x)
        gap = jnp.mean(losses.kl(attacked, clean) * weight)
        total = jnp.mean(boosted) + at(self.beta, step, "beta") * gap
        return total, {
            "loss": total,
            "accuracy": accuracy(attacked, y),
            "clean_accuracy": accuracy(clean, y),
            "weighted_kl": gap,
        }


def _margin_term(logits: Array, y: Array) -> Array:
    """Return -log(1 - max_{k != y} p_k): the sum of all p but the largest wrong one."""
    log_p = jax.nn.log_softmax(logits)
    others = jnp.where(predictions.is_label(log_p, y), -jnp.inf, log_p)
    rival = predictions.is_label(log_p, jnp.argmax(others, -1))
    return -jax.nn.logsumexp(jnp.where(rival, -jnp.inf, log_p), -1)


def mart(
    attack: Any,
    threat: Threat,
    beta: float | optax.Schedule = 5.0,
    *,
    eps_schedule: optax.Schedule | None = None,
) -> Mart:
    """Return the objective of MART: BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x)).

    Wang et al. 2020, "Improving Adversarial Robustness Requires Revisiting Misclassified
    Examples" (ICLR), with the boosted cross-entropy BCE(p, y) =
    -log p_y - log(1 - max_{k != y} p_k). Exactly so; the published code adds 1e-4 inside
    the second logarithm. The attack there maximises the cross-entropy.

    PGD overstates the robustness of what it trains: judge it by `jr.autoattack`.

    A step costs the attack and two gradients: `trained_fn` is called with the clean and
    then with the attacked inputs.

    Args:
      attack: Any attack, e.g. `jr.PGD(num_steps=10)`.
      threat: The threat model, e.g. `jr.Linf(8 / 255)`.
      beta: Weight of the divergence, at least 0, or a schedule step -> beta.
      eps_schedule: Factor on eps by training step, see `adversarial`.

    Returns:
      An objective `(trained_fn, attacked_fn, x, y, key=, step=) -> (loss, metrics)`.

    Raises:
      ValueError: If beta is negative, or an attack by `kl` starts at x.
      TypeError: If the attack takes targets.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> objective = mart(jr.FGSM(), jr.Linf(0.5, bounds=None))
      >>> x, y = jnp.array([[2.0, 0.0]]), jnp.array([0])
      >>> model = lambda x: x
      >>> loss, metrics = objective(model, model, x, y)
      >>> print(f"{metrics['weighted_kl']:.3f} {loss:.3f}")
      0.008 0.667
    """
    attack, threat = as_adversary(attack, threat, "mart")
    beta = as_weight(beta, "beta")
    return Mart(attack, threat, beta, eps_schedule=eps_schedule)
