"""GradAlign: input gradients that point the same way everywhere in the ball."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrobust import losses
from jaxrobust._core import batching, checks, predictions, pytree
from jaxrobust.training.attacked import (
    Attacked,
    as_adversary,
    as_weight,
    at,
    find,
)
from jaxrobust.training.objectives import accuracy
from jaxrobust.types import Array, Loss, Threat


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class GradAlign(Attacked):
    """loss(f(x_adv), y) + weight (1 - cos of the input gradients); made by `gradalign`."""

    weight: Any
    loss: Loss = pytree.static(losses.cross_entropy)

    def inner(self, attacked_fn, x, y, *, key, step) -> tuple[Array, Array]:
        """Return x_adv, and the random point in the ball."""
        if key is None:
            raise ValueError(
                "gradalign draws random points and needs a key: call the objective with "
                "key=jax.random.key(0), as jr.training.fit does."
            )
        attack_key, noise_key = jax.random.split(key)
        threat = self.threat_at(step)
        x_adv = find(self.attack, attacked_fn, x, y, threat=threat, key=attack_key)
        keys = batching.per_example_keys(noise_key, len(x))
        return x_adv, threat.sample(keys, x)

    def outer(self, trained_fn, x, y, found, *, step) -> tuple[Array, dict[str, Array]]:
        """Return the mean loss at x_adv plus the weighted misalignment."""
        x_adv, x_noisy = found

        def total_loss(x):
            # Rebuilt here, a module that counts statistics may be called under jax.grad;
            # what it counts is dropped.
            model_fn = jax.tree.map(lambda leaf: leaf, trained_fn)
            return jnp.sum(self.loss(predictions.wide(model_fn(x)), y))

        at_x, at_noise = jax.grad(total_loss)(x), jax.grad(total_loss)(x_noisy)
        cosine = jnp.mean(_cosine(at_x, at_noise))
        logits = predictions.wide(trained_fn(x_adv))
        total = jnp.mean(self.loss(logits, y))
        total += at(self.weight, step, "weight") * (1 - cosine)
        return total, {
            "loss": total,
            "accuracy": accuracy(logits, y),
            "cosine": cosine,
        }


def _cosine(a: Array, b: Array) -> Array:
    """Return the cosine of the angle of each pair, `[B]`; 1 where one of them is zero."""
    a, b = (batching.flatten(predictions.wide(v)) for v in (a, b))
    # Largest entries of 1: squares of small gradients would underflow.
    a, b = (v / jax.lax.stop_gradient(_largest(v)) for v in (a, b))
    squares = jnp.sum(a**2, -1) * jnp.sum(b**2, -1)
    is_known = squares > 0
    # No sqrt at 0, where its slope is NaN.
    norms = jnp.sqrt(jnp.where(is_known, squares, 1))
    return jnp.where(is_known, jnp.sum(a * b, -1) / norms, 1)


def _largest(v: Array) -> Array:
    largest = jnp.max(jnp.abs(v), -1, keepdims=True)
    return jnp.where(largest > 0, largest, 1)


def gradalign(
    attack: Any,
    threat: Threat,
    weight: float | optax.Schedule = 0.2,
    *,
    loss: Loss = losses.cross_entropy,
    eps_schedule: optax.Schedule | None = None,
) -> GradAlign:
    """Return the objective of GradAlign: what keeps training with FGSM from collapsing.

    Andriushchenko & Flammarion 2020, arXiv:2007.02617, eq. (5):
    CE(f(x_adv), y) + weight (1 - cos(grad l(x), grad l(x + eta))) with eta uniform in the
    ball. Both gradients are differentiated, as the equation says; the published code holds
    the one at x fixed.

    A step costs the attack, a gradient at x_adv, and two input gradients that are
    differentiated once more, which is as much as two gradients each. The batch statistics
    are those of the attacked inputs.

    Args:
      attack: The attack, e.g. `jr.FGSM(rel_step_size=1.25)`.
      threat: The threat model, e.g. `jr.Linf(8 / 255)`.
      weight: Weight of the misalignment, at least 0, or a schedule step -> weight. The
        authors have 0.2 for eps = 8/255.
      loss: Per-example loss `(logits, y) -> [B]`.
      eps_schedule: Factor on eps by training step, see `adversarial`.

    Returns:
      An objective `(trained_fn, attacked_fn, x, y, key=, step=) -> (loss, metrics)`.

    Raises:
      ValueError: If the weight is negative, there is no key, or an attack by `kl` starts at
        x.
      TypeError: If the attack takes targets.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> objective = gradalign(jr.FGSM(), jr.Linf(0.5, bounds=None))
      >>> x, y = jnp.array([[2.0, 0.0]]), jnp.array([0])
      >>> linear = lambda x: x  # its gradients point the same way everywhere
      >>> loss, metrics = objective(linear, linear, x, y, key=jax.random.key(0))
      >>> print(f"{metrics['cosine']:.3f} {loss:.3f}")
      1.000 0.313
    """
    attack, threat = as_adversary(attack, threat, "gradalign")
    checks.check_loss(loss)
    weight = as_weight(weight, "weight")
    return GradAlign(attack, threat, weight, loss, eps_schedule=eps_schedule)
