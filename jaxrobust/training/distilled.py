"""Adversarial training with teachers: soft labels against robust overfitting."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrobust import losses
from jaxrobust._core import batching, checks, model_checks, predictions, pytree
from jaxrobust.training.attacked import (
    Attacked,
    as_adversary,
    as_weight,
    at,
    check_classes,
)
from jaxrobust.training.objectives import accuracy
from jaxrobust.types import Array, LogitsFn, Loss, Threat


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class Distilled(Attacked):
    """w_0 loss(f(x_adv), y) + sum_i w_i KD(teacher_i(x_adv), f(x_adv)); by `distilled`."""

    teacher_fns: tuple
    weights: tuple
    temperature: Any
    loss: Loss = pytree.static(losses.cross_entropy)

    def inner(self, attacked_fn, x, y, *, key, step) -> tuple[Array, tuple]:
        """Return x_adv, and what each teacher says of it."""
        x_adv = super().inner(attacked_fn, x, y, key=key, step=step)
        taught = tuple(teacher_fn(x_adv) for teacher_fn in self.teacher_fns)
        own = jax.eval_shape(attacked_fn, x)
        for i, logits in enumerate(taught):
            check_classes(logits, own, f"teacher_fns[{i}]")
        return x_adv, taught

    def outer(self, trained_fn, x, y, found, *, step) -> tuple[Array, dict[str, Array]]:
        """Return the weighted sum of the loss and of the distance to each teacher."""
        x_adv, taught = found
        logits = predictions.wide(trained_fn(x_adv))
        terms = [jnp.mean(self.loss(logits, y))]
        terms += [_distance(teacher, logits, self.temperature) for teacher in taught]
        total = sum(
            at(weight, step, f"weights[{i}]") * term
            for i, (weight, term) in enumerate(zip(self.weights, terms, strict=True))
        )
        total = jnp.asarray(total)
        return total, {"loss": total, "accuracy": accuracy(logits, y)}


def _distance(teacher: Array, student: Array, temperature: Any) -> Array:
    """Return T^2 CE(softmax(t / T), softmax(s / T)), Hinton et al. 2015, section 2."""
    p = jax.nn.softmax(predictions.wide(teacher) / temperature)
    log_q = jax.nn.log_softmax(student / temperature)
    return -(temperature**2) * jnp.mean(jnp.sum(p * log_q, -1))


def distilled(
    attack: Any,
    threat: Threat,
    teacher_fns: Sequence[LogitsFn],
    weights: Sequence[float | optax.Schedule] = (0.3, 0.1, 0.6),
    temperature: float = 2.0,
    *,
    loss: Loss = losses.cross_entropy,
    eps_schedule: optax.Schedule | None = None,
) -> Distilled:
    """Return the objective of adversarial training with soft labels of teachers.

    Chen et al. 2021, "Robust Overfitting may be mitigated by properly learned smoothening"
    (ICLR): 0.3 CE + 0.1 KD(t_1) + 0.6 KD(t_2) at x_adv, with t_1 from standard and t_2 from
    adversarial training, both fed x_adv, and KD(t) = T^2 CE(softmax(t / T),
    softmax(f / T)), Hinton et al. 2015, arXiv:1503.02531.

    A step costs the attack, a forward pass of each teacher and one gradient.

    Args:
      attack: Any attack, e.g. `jr.PGD(num_steps=10)`.
      threat: The threat model, e.g. `jr.Linf(8 / 255)`.
      teacher_fns: Models in evaluation mode as functions `[B, ...] -> [B, C]`, e.g.
        `jr.models.logits_fn(model)`; they are not trained.
      weights: Of the loss and then of each teacher, at least 0, or schedules by step.
      temperature: T, above 0.
      loss: Per-example loss `(logits, y) -> [B]` of the labels.
      eps_schedule: Factor on eps by training step, see `adversarial`.

    Returns:
      An objective `(trained_fn, attacked_fn, x, y, key=, step=) -> (loss, metrics)`.

    Raises:
      ValueError: If there is not a weight for the loss and each teacher, a weight is
        negative, the temperature is not positive, a teacher has other classes, or an
        attack by `kl` starts at x.
      TypeError: If the attack takes targets, or there is no list of teachers.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> teacher = lambda x: 10 * x
      >>> objective = distilled(jr.FGSM(), jr.Linf(0.5, bounds=None), [teacher], (0.5, 0.5))
      >>> x, y, model = jnp.array([[2.0, 0.0]]), jnp.array([0]), lambda x: x
      >>> loss, metrics = objective(model, model, x, y)
      >>> print(f"{loss:.3f}")
      1.111
    """
    attack, threat = as_adversary(attack, threat, "distilled")
    checks.check_loss(loss)
    one = "for one teacher write [teacher_fn] and weights=(0.5, 0.5)"
    checks.check_list(teacher_fns, "teacher_fns", one)
    for teacher_fn in teacher_fns:
        model_checks.check_callable(teacher_fn)
    if len(weights) != len(teacher_fns) + 1:
        raise ValueError(
            f"distilled has {len(teacher_fns)} teachers and {len(weights)} weights: one "
            "for the loss and one for each teacher is needed, such as (0.5, 0.5) for one."
        )
    checks.check_number(
        temperature,
        "temperature",
        "a finite number above 0",
        lambda value: 0 < value < math.inf,
    )
    return Distilled(
        attack,
        threat,
        tuple(map(batching.as_pytree, teacher_fns)),
        tuple(as_weight(w, f"weights[{i}]") for i, w in enumerate(weights)),
        temperature,
        loss,
        eps_schedule=eps_schedule,
    )
