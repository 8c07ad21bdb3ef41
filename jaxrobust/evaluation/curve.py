"""Robust accuracy as a function of eps, each example attacked until it breaks."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrobust._core import threat_rows
from jaxrobust.evaluation.evaluate import evaluate
from jaxrobust.evaluation.intervals import wilson
from jaxrobust.types import Array, Attack, LogitsFn, Threat


@dataclasses.dataclass(frozen=True)
class Curve:
    """Robust accuracy at several radii; made by `robustness_curve`.

    Args:
      eps: Radii `[K]`, ascending.
      is_robust: Whether each example withstands the attack at each radius `[K, N]`; of a
        random model, in which share of the fresh draws.
      clean_accuracy: Accuracy at radius 0.
      cost: Evaluations of the model at each radius at which examples were left, as in
        `Report.cost`.
      settings: What was run.

    Example:
      >>> import numpy as np
      >>> curve = Curve(np.array([0.1, 0.2]), np.array([[1, 1], [1, 0]], bool), 1.0, (), {})
      >>> print(curve.robust_accuracy)
      [1.  0.5]
    """

    eps: np.ndarray
    is_robust: np.ndarray
    clean_accuracy: float
    cost: tuple[dict[str, int] | None, ...]
    settings: dict[str, Any]

    @property
    def robust_accuracy(self) -> np.ndarray:
        """Robust accuracy at each radius, `[K]`."""
        return self.is_robust.mean(axis=1)

    @property
    def intervals(self) -> np.ndarray:
        """95% Wilson intervals `(low, high)` at each radius, `[K, 2]`."""
        count = self.is_robust.shape[1]
        return np.array([wilson(float(r.sum()), count) for r in self.is_robust])

    def summary(self) -> dict[str, Any]:
        """Return every figure as JSON-compatible values."""
        return {
            "num_examples": self.is_robust.shape[1],
            "eps": self.eps.tolist(),
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy.tolist(),
            "intervals": self.intervals.tolist(),
            "cost": list(self.cost),
            "settings": self.settings,
        }

    def __str__(self) -> str:
        lines = [f"attack  {self.settings['attack']}", "   eps   robust"]
        for eps, value, (low, high) in zip(
            self.eps, self.robust_accuracy, self.intervals, strict=True
        ):
            lines.append(
                f"{eps:6.4g}  {100 * value:6.2f}%  [{100 * low:.2f}, {100 * high:.2f}]"
            )
        return "\n".join(lines)


def robustness_curve(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    attack: Attack,
    threat: Threat,
    eps: Sequence[float],
    key: Array | None = None,
    target: Any = None,
    **options: Any,
) -> Curve:
    """Return the robust accuracy at several radii.

    Carlini et al. 2019, arXiv:1902.06705, section 3: a curve shows what one radius hides.
    What breaks at one radius is broken at every larger one by the same point, so each
    radius costs only the examples that survive the smaller ones. Nothing is compiled
    for a new radius. Of a random model nothing is broken for good: every example is
    attacked at every radius.

    Args:
      logits_fn: Pure function from inputs `[B, ...]` to logits `[B, C]`.
      x: Clean inputs `[N, ...]`.
      y: True labels `[N]`.
      attack: Any attack.
      threat: The threat; its own `eps` is replaced.
      eps: Radii in the units of the data, in any order.
      key: One typed PRNG key; needed by attacks that draw random numbers.
      target: What the attack's loss takes instead of `y`.
      **options: Further arguments of `evaluate`, such as `batch_size` and `mesh`.

    Returns:
      A `Curve`; print it, or draw it with `jr.plotting.robustness_curve`.

    Raises:
      ValueError, TypeError: On misuse, with advice.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> x, y = jnp.array([[0.2, 0.6], [0.45, 0.55]]), jnp.array([1, 1])
      >>> curve = robustness_curve(lambda x: x, x, y, attack=jr.FGSM(),
      ...                          threat=jr.Linf(0.0), eps=[0.01, 0.1, 0.3])
      >>> print(curve.robust_accuracy)
      [1.  0.5 0. ]
    """
    threat = threat_rows.as_threat(threat)
    radii = np.sort(np.asarray(eps, np.float32))
    if radii.ndim != 1 or not len(radii):
        raise ValueError(f"eps={eps}: a sequence of at least one radius is needed.")
    if {"state_file", "max_seconds"} & options.keys():
        raise ValueError(
            "robustness_curve does not save its state, nor stop early: call evaluate for "
            "each radius."
        )
    is_left, robust, reports = np.ones(len(y), bool), [], []
    for radius in radii:
        if is_left.any():
            report = evaluate(
                logits_fn,
                x,
                y,
                attack=attack,
                threat=threat.with_eps(float(radius)),
                key=key,
                target=target,
                among=is_left,
                **options,
            )
            reports.append(report)
            if report.draws is None:
                is_left = is_left & report.is_robust
        is_random = reports[-1].draws is not None
        robust.append(reports[-1].robust_share if is_random else is_left)
    return Curve(
        radii,
        np.array(robust),
        reports[0].clean_accuracy,
        tuple(report.cost for report in reports),
        reports[0].settings,
    )
