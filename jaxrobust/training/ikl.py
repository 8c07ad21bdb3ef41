"""IKL: the divergence of TRADES taken apart, with the weights of whole classes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jaxrobust import losses
from jaxrobust._core import checks, predictions, pytree
from jaxrobust._core.representation import text
from jaxrobust.training.attacked import Attacked, as_adversary, as_weight, at
from jaxrobust.training.objectives import accuracy
from jaxrobust.types import Array, Loss, Threat


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class Ikl(Attacked):
    """loss(f(x), y) + beta/2 Var_w(f(x) - f(x_adv)) + alpha CE(p(x), f(x_adv))."""

    beta: Any
    alpha: Any
    class_probs: Any
    loss: Loss = pytree.static(losses.cross_entropy)

    def outer(self, trained_fn, x, y, found, *, step) -> tuple[Array, dict[str, Array]]:
        """Return the mean loss on clean inputs plus the two parts of the divergence."""
        clean, attacked = (predictions.wide(trained_fn(z)) for z in (x, found))
        square = jnp.mean(_half_variance(clean - attacked, self._weights(clean, y)))
        p = jax.lax.stop_gradient(jax.nn.softmax(clean))
        soft = jnp.mean(-jnp.sum(p * jax.nn.log_softmax(attacked), -1))
        total = (
            jnp.mean(self.loss(clean, y))
            + at(self.beta, step, "beta") * square
            + at(self.alpha, step, "alpha") * soft
        )
        return total, {
            "loss": total,
            "accuracy": accuracy(attacked, y),
            "clean_accuracy": accuracy(clean, y),
            "weighted_square": square,
            "soft_cross_entropy": soft,
        }

    def _weights(self, logits: Array, y: Array) -> Array:
        """Return the mean probabilities in the class of each example, `[B, C]`."""
        num_classes = logits.shape[-1]
        if self.class_probs is None:
            return jnp.full_like(logits, 1 / num_classes)
        rows = jnp.asarray(self.class_probs, logits.dtype)
        if rows.shape != (num_classes, num_classes):
            raise ValueError(
                f"class_probs has shape {rows.shape}, and the model {num_classes} classes: "
                f"a row of mean probabilities for each, [{num_classes}, {num_classes}], is "
                "needed."
            )
        rows = jax.lax.stop_gradient(rows)
        return (rows / jnp.sum(rows, -1, keepdims=True))[y]


def _half_variance(d: Array, w: Array) -> Array:
    """Return 1/4 sum_jk w_j w_k (d_j - d_k)^2 = (sum w d^2 - (sum w d)^2) / 2, `[B]`."""
    d = d - jnp.sum(w * d, -1, keepdims=True)  # so that nothing cancels
    return jnp.sum(w * d**2, -1) / 2


def _check_probs(class_probs: Any) -> None:
    """Raise where a row cannot be scaled to a sum of 1."""
    if class_probs is None or isinstance(class_probs, jax.core.Tracer):
        return
    rows = np.asarray(class_probs, np.float32)
    is_valid = rows.ndim == 2 and np.isfinite(rows).all() and (rows >= 0).all()
    if not is_valid or not (rows.sum(-1) > 0).all():
        raise ValueError(
            f"class_probs={text(class_probs)}: a row of mean probabilities for each class "
            "is needed, [C, C], of finite numbers of at least 0, and none of zeros alone."
        )


def ikl(
    attack: Any,
    threat: Threat,
    beta: float | optax.Schedule = 20.0,
    alpha: float | optax.Schedule = 4.0,
    class_probs: ArrayLike | None = None,
    *,
    loss: Loss = losses.cross_entropy,
    eps_schedule: optax.Schedule | None = None,
) -> Ikl:
    """Return the objective of improved KL: TRADES with the divergence taken in two parts.

    Cui et al. 2024, arXiv:2305.13948. The gradient of KL(p(x) || p(x')) is that of a
    weighted square and of a cross-entropy with soft labels. IKL weights both, lets the
    square pull the clean logits too, and takes its weights w from the mean probabilities of
    the class of y instead of the example's own. With d = f(x) - f(x'):
    CE(f(x), y) + beta 1/4 sum_jk w_j w_k (d_j - d_k)^2 + alpha CE(stop(p(x)), f(x')).

    A step costs the attack, a forward pass for the clean logits of the attacked model, and
    two gradients: `trained_fn` is called with the clean and then with the attacked inputs.

    Args:
      attack: The attack, e.g. `jr.PGD(num_steps=10, loss=jr.losses.kl)`: it maximises the
        same as the soft cross-entropy.
      threat: The threat model, e.g. `jr.Linf(8 / 255)`.
      beta: Weight of the square, at least 0, or a schedule step -> beta.
      alpha: Weight of the soft cross-entropy, or a schedule.
      class_probs: `[C, C]`, row c the mean of softmax(f(x) / 4) over the clean inputs of
        class c, as the authors take it in each epoch from the one before; by default all
        equal, as in their first.
      loss: Per-example loss `(logits, y) -> [B]` of the clean inputs.
      eps_schedule: Factor on eps by training step, see `adversarial`.

    Returns:
      An objective `(trained_fn, attacked_fn, x, y, key=, step=) -> (loss, metrics)`.

    Raises:
      ValueError: If a weight is negative, `class_probs` holds no probabilities or is for
        other classes, or an attack by `kl` starts at x.
      TypeError: If the attack takes targets.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> objective = ikl(jr.FGSM(), jr.Linf(0.5, bounds=None))
      >>> x, y = jnp.array([[2.0, 0.0]]), jnp.array([0])
      >>> loss, metrics = objective(lambda x: x, lambda x: x, x, y)
      >>> print(metrics["weighted_square"], f"{metrics['soft_cross_entropy']:.3f}")
      0.125 0.432
    """
    attack, threat = as_adversary(attack, threat, "ikl")
    checks.check_loss(loss)
    _check_probs(class_probs)
    return Ikl(
        attack,
        threat,
        as_weight(beta, "beta"),
        as_weight(alpha, "alpha"),
        class_probs,
        loss,
        eps_schedule=eps_schedule,
    )
