"""Mixtures: a weighted sum of objectives, as of clean and adversarial risk."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import optax

from jaxrobust._core import checks, pytree
from jaxrobust.training.attacked import as_weight, at, key_of_part
from jaxrobust.training.objectives import Objective, as_objective, threats_of
from jaxrobust.types import Array


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class Mixture(Objective):
    """sum_i weight_i objective_i; made by `mixture`."""

    objectives: tuple
    weights: tuple

    @property
    def threat(self) -> Any:  # pyrefly: ignore[bad-override]
        """The threats of all parts."""
        return threats_of(self.objectives)

    def inner(self, attacked_fn, x, y, *, key, step) -> tuple:
        """Return what the adversary of each part has found."""
        return tuple(
            objective.inner(
                attacked_fn,
                x,
                y,
                key=key_of_part(key, i),
                step=step,
            )
            for i, objective in enumerate(self.objectives)
        )

    def outer(self, trained_fn, x, y, found, *, step) -> tuple[Array, dict[str, Array]]:
        """Return the weighted sum, and the metrics of part i as `name_i`."""
        total, metrics = jnp.zeros(()), {}
        parts = zip(self.objectives, self.weights, found, strict=True)
        for i, (objective, weight, its) in enumerate(parts, 1):
            loss, own = objective.outer(trained_fn, x, y, its, step=step)
            total = total + at(weight, step, f"weights[{i - 1}]") * loss
            metrics |= {f"{name}_{i}": value for name, value in own.items()}
        return total, metrics | {"loss": total}


def mixture(
    objectives: Sequence[Any], weights: Sequence[float | optax.Schedule] | None = None
) -> Mixture:
    """Return the weighted sum of objectives; by default their mean.

    Goodfellow et al. 2015, arXiv:1412.6572, section 6: half of the clean and half of the
    adversarial loss. With one objective for each threat: the AVG strategy of Tramer & Boneh
    2019, arXiv:1904.13000.

    A step costs what the parts cost: `trained_fn` is called by one after the other.

    Args:
      objectives: At least one, functions among them too.
      weights: One for each, at least 0, or schedules step -> weight; by default 1 / n.

    Returns:
      An objective `(trained_fn, attacked_fn, x, y, key=, step=) -> (loss, metrics)`; the
      metrics of the parts are numbered from 1: `accuracy_1`, `accuracy_2`.

    Raises:
      ValueError: If there are no objectives, other weights than objectives, or negative
        ones.
      TypeError: If `objectives` is not a list, or something else is in it.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> adversarial = jr.training.adversarial(jr.FGSM(), jr.Linf(1.5, bounds=None))
      >>> objective = mixture([jr.training.standard(), adversarial])
      >>> x, y, model = jnp.array([[2.0, 0.0]]), jnp.array([0]), lambda x: x
      >>> loss, metrics = objective(model, model, x, y)
      >>> print(metrics["accuracy_1"], metrics["accuracy_2"], f"{loss:.2f}")
      1.0 0.0 0.72
    """
    checks.check_list(objectives, "objectives", "for a single one write [objective]")
    objectives = tuple(map(as_objective, objectives))
    count = len(objectives)
    if weights is None:
        weights = [1 / count for _ in objectives]
    if not objectives or len(weights) != count:
        raise ValueError(
            f"mixture has {count} objectives and {len(weights)} weights: at "
            "least one objective is needed, and a weight for each."
        )
    named = enumerate(weights)
    return Mixture(objectives, tuple(as_weight(w, f"weights[{i}]") for i, w in named))
