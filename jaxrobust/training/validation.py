"""Accuracy on examples that are held out, clean and under attack."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust._core import predictions
from jaxrobust._core.representation import concise
from jaxrobust.training import _checks
from jaxrobust.training.step import Views, Weights, logits_fn, to_unit
from jaxrobust.types import Attack, Threat


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Validation:
    """What a model is scored on after each epoch: `fit(validation=Validation(x, y))`.

    Rice et al. 2020, arXiv:2002.11569: robust accuracy falls again while training goes on,
    so that the best epoch is chosen on examples that are held out, under attack.

    Args:
      x: Inputs `[N, ...]`, stored as those of the training.
      y: Labels `[N]`.
      attack: The attack for the robust accuracy; without one the clean accuracy decides.
      threat: What it may do.
      batch_size: Examples at a time; by default those of a training step.

    Raises:
      ValueError: For an attack without a threat, or a size below 1.
      TypeError: For an attack that does not take labels.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> x, y = jnp.zeros((2, 1)), jnp.array([0, 1])
      >>> validation = Validation(x, y, attack=jr.FGSM(), threat=jr.Linf(0.1))
      >>> print(validation.attack, validation.threat)
      FGSM() Linf(0.1)
    """

    x: Any
    y: Any
    attack: Any = None
    threat: Any = None
    batch_size: int | None = None

    __repr__ = concise

    def __post_init__(self):
        _checks.check_validation(
            "Validation(attack=)", self.x, self.attack, self.threat
        )
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(
                f"Validation(batch_size={self.batch_size}): at least 1 is needed, or None."
            )


# Where there is none; what else is said beside it still holds for a monitor.
NOTHING = Validation(None, None)


class Scores:
    """Weights -> accuracies of a model on the same examples, with the same draws.

    An example counts as robust where the clean and the attacked input are both classified
    correctly. Each example has its own key. The last batch repeats the last example and
    does not count it again.
    """

    def __init__(
        self,
        views: Views,
        data: tuple[jax.Array, jax.Array],
        *,
        attack: Attack | None,
        threat: Threat | None,
        batch_size: int,
        scale: float,
        key: jax.Array,
    ):
        """Compile nothing yet; without an attack there is clean accuracy alone."""
        num_examples = len(data[0])
        batch_size = min(batch_size, num_examples)
        self._data, self._key, self._batch_size = data, key, batch_size

        @jax.jit
        def count(weights, x, y, key, start):
            index = start + jnp.arange(batch_size)
            is_counted = index < num_examples
            index = jnp.minimum(index, num_examples - 1)
            x, y = to_unit(x[index], scale), y[index]
            model = logits_fn(views.eval, weights)
            is_correct = is_counted & (predictions.predict(model(x)) == y)
            counts = {"val_clean": is_correct.sum()}
            if attack is not None and threat is not None:
                keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
                x_adv = attack(model, x, y, threat=threat, key=keys)
                is_robust = is_correct & (predictions.predict(model(x_adv)) == y)
                counts["val_robust"] = is_robust.sum()
            return counts

        self._count = count

    def program(self, weights: Weights) -> tuple[Any, ...]:
        """Return the function that counts, and its arguments."""
        return (self._count, weights, *self._data, self._key, 0)

    def __call__(self, weights: Weights) -> dict[str, float]:
        """Return {"val_clean", "val_robust"}, fractions of the examples."""
        num_examples = len(self._data[0])
        starts = range(0, num_examples, self._batch_size)
        batches = [self._count(weights, *self._data, self._key, i) for i in starts]
        totals = jax.tree.map(lambda *counts: sum(counts), *jax.device_get(batches))
        return {name: float(total) / num_examples for name, total in totals.items()}
