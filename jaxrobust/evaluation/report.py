"""The report of an evaluation: what was measured, on what, and how."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from jaxrobust.evaluation.intervals import wilson

_ARRAYS = (
    "y",
    "predicted",
    "predicted_adv",
    "confidence",
    "confidence_adv",
    "loss",
    "loss_adv",
    "distance",
    "x_adv",
)


@dataclasses.dataclass(frozen=True)
class Report:
    """Clean and robust accuracy of a classifier, recomputed on the returned points.

    Made by `evaluate`. `str(report)` is a table for the terminal; `save` writes JSON and
    npz. All per-example arrays are NumPy, in the order of the inputs.

    Args:
      y: Labels `[N]`.
      predicted: Predictions on the clean inputs `[N]`.
      predicted_adv: Predictions on `x_adv` `[N]`.
      confidence: Softmax probability of the prediction on the clean inputs `[N]`.
      confidence_adv: The same on `x_adv` `[N]`.
      loss: Cross-entropy on the clean inputs `[N]`.
      loss_adv: Cross-entropy on `x_adv` `[N]`.
      distance: Norm of `x_adv - x` in the threat's norm `[N]`.
      x_adv: The adversarial examples `[N, ...]`.
      num_classes: Number of classes C.
      cost: Evaluations performed: gradients, forwards, with those of the evaluation itself;
        None where the attack does not say.
      audit: Figures that show whether the result can be believed: the largest distance,
        the range of `x_adv`, the number of points outside ball or bounds.
      settings: What was run: attack, threat, batch size, precision, versions, device.
    """

    y: np.ndarray
    predicted: np.ndarray
    predicted_adv: np.ndarray
    confidence: np.ndarray
    confidence_adv: np.ndarray
    loss: np.ndarray
    loss_adv: np.ndarray
    distance: np.ndarray
    x_adv: np.ndarray
    num_classes: int
    cost: dict[str, int] | None
    audit: dict[str, Any]
    settings: dict[str, Any]

    @property
    def is_correct(self) -> np.ndarray:
        """Whether each clean input is classified correctly `[N]`."""
        return self.predicted == self.y

    @property
    def is_robust(self) -> np.ndarray:
        """Whether each example is correct on the clean input and under attack `[N]`."""
        return self.is_correct & (self.predicted_adv == self.y)

    @property
    def clean_accuracy(self) -> float:
        """The share of examples classified correctly."""
        return float(self.is_correct.mean())

    @property
    def robust_accuracy(self) -> float:
        """The share of examples classified correctly, clean and under attack."""
        return float(self.is_robust.mean())

    @property
    def adversarial_accuracy(self) -> float:
        """The share of adversarial examples classified correctly: 1 - attack error.

        The literature's "accuracy under FGSM": an example that is wrong on the clean input
        and right under attack counts as right here and as broken in `robust_accuracy`.
        """
        return float((self.predicted_adv == self.y).mean())

    def summary(self) -> dict[str, Any]:
        """Return every figure of the report as JSON-compatible values."""
        count = len(self.y)
        return {
            "num_examples": count,
            "clean_accuracy": self.clean_accuracy,
            "clean_interval": wilson(int(self.is_correct.sum()), count),
            "robust_accuracy": self.robust_accuracy,
            "robust_interval": wilson(int(self.is_robust.sum()), count),
            "adversarial_accuracy": self.adversarial_accuracy,
            "mean_loss": float(self.loss.mean()),
            "mean_loss_adv": float(self.loss_adv.mean()),
            "distance_mean": float(self.distance.mean()),
            "distance_max": float(self.distance.max()),
            "per_class": self.per_class(),
            "cost": self.cost,
            "audit": self.audit,
            "settings": self.settings,
        }

    def per_class(self) -> list[dict[str, Any]]:
        """Return count, clean and robust accuracy of each class that occurs."""
        rows = []
        for label in range(self.num_classes):
            chosen = self.y == label
            if chosen.any():
                rows.append(
                    {
                        "class": label,
                        "count": int(chosen.sum()),
                        "clean_accuracy": float(self.is_correct[chosen].mean()),
                        "robust_accuracy": float(self.is_robust[chosen].mean()),
                    }
                )
        return rows

    def save(self, directory: str | os.PathLike) -> None:
        """Write `report.json` (figures) and `report.npz` (arrays) to `directory`.

        Args:
          directory: Created if it is not there.

        Raises:
          OSError: If it cannot be written.
        """
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.summary(), indent=2) + "\n"
        (directory / "report.json").write_text(text)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        np.savez_compressed(directory / "report.npz", **arrays)

    def __str__(self) -> str:
        figures = self.summary()
        lines = [
            f"attack    {self.settings['attack']}",
            f"threat    {self.settings['threat']}",
            f"examples  {len(self.y)}",
            f"clean     {_percent(self.clean_accuracy, figures['clean_interval'])}",
            f"robust    {_percent(self.robust_accuracy, figures['robust_interval'])}",
            f"loss      {self.loss.mean():.4f} clean, {self.loss_adv.mean():.4f} attacked",
            f"distance  mean {self.distance.mean():.4g}, max {self.distance.max():.4g}",
        ]
        if self.cost:
            lines.append(
                f"cost      {self.cost['gradients']:,} gradients, "
                f"{self.cost['forwards']:,} forwards"
            )
        failures = ("outside_ball", "outside_bounds", "outside_mask", "not_finite")
        if any(self.audit.get(name) for name in failures):
            lines.append(f"AUDIT     {self.audit}")
        lines.append(
            "class     " + "".join(f"{r['class']:>7}" for r in self.per_class())
        )
        for name in ("clean", "robust"):
            cells = (f"{100 * r[f'{name}_accuracy']:7.1f}" for r in self.per_class())
            lines.append(f"{name:<10}" + "".join(cells))
        return "\n".join(lines)


def _percent(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:.2f}%  [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"
