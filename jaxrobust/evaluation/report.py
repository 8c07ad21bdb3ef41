"""The report of an evaluation: what was measured, on what, and how."""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrobust._core.citations import bibtex
from jaxrobust.evaluation import _text
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
    "broken_by",
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
      cost: Evaluations of the model. `gradients` and `forwards` were performed (whole
        batches, with those of the evaluation itself), `gradients_needed` and
        `forwards_needed` are those that an undecided example waited for; None where an
        attack does not say.
      audit: Figures that show whether the result can be believed: the range of `x_adv`,
        the number of points outside ball or bounds, and how many points that broke an
        example did not do so again when they were classified once more.
      settings: What was run: attack, threat, batch size, precision, versions, device.
      attacks: Names of the attacks, in their order.
      broken_by: Number of the attack that broke the example `[N]`; -1: none. Of a random
        model: whose point was kept; -1: the clean point.
      broken_alone: Which examples each attack broke by itself `[num_attacks, N]`; None
        unless the attacks were run individually.
      groups: Number of each example's group `[N]`, or None.
      target: The class that each example was to reach `[N]`, or None.
      papers: Keys of the papers to cite.
      draws: Predictions of a random model on the clean inputs, of each fresh draw
        `[N, K]`; None for other models. Then accuracies are means over draws,
        `predicted` is the most frequent prediction and `loss` the mean.
      draws_adv: The same on `x_adv` `[N, K]`.
      share_after: In which share of these draws each example is right after each attack
        `[num_attacks, N]`; None unless the model is random and the attacks are several.
      robust_claimed: Whether each example of a random model is robust by the attacks' own
        word, in the draws among which they chose `[N]`; None for other models. It
        counts luck, and is there to be compared.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> x, y = jnp.array([[0.2, 0.6], [0.45, 0.55]]), jnp.array([1, 1])
      >>> report = jr.evaluate(lambda x: x, x, y, attack=jr.FGSM(), threat=jr.Linf(0.1))
      >>> print(report.is_robust, report.confusion()[1])
      [ True False] [1 1]
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
    attacks: tuple[str, ...]
    broken_by: np.ndarray
    broken_alone: np.ndarray | None = None
    groups: np.ndarray | None = None
    target: np.ndarray | None = None
    papers: tuple[str, ...] = ()
    draws: np.ndarray | None = None
    draws_adv: np.ndarray | None = None
    share_after: np.ndarray | None = None
    robust_claimed: np.ndarray | None = None

    @property
    def is_correct(self) -> np.ndarray:
        """Whether each clean input is classified correctly `[N]`."""
        return self.predicted == self.y

    @property
    def is_robust(self) -> np.ndarray:
        """Whether each example is correct on the clean input and under attack `[N]`.

        Of a random model: in most draws. Its accuracy is the mean of `robust_share`.
        """
        return self.is_correct & (self.predicted_adv == self.y)

    @property
    def is_finished(self) -> bool:
        """Whether the attacks have ended; if not, the figures are upper bounds."""
        return True

    @property
    def num_finished(self) -> int:
        """How many of `attacks` have ended: all, or all but the last."""
        return len(self.attacks)

    @property
    def undecided(self) -> np.ndarray:
        """Which examples count as robust and were still to be attacked `[N]`."""
        return np.zeros(len(self.y), bool)

    @property
    def clean_share(self) -> np.ndarray:
        """In which share of the draws each clean input is classified correctly `[N]`.

        0 or 1 unless the model is random.
        """
        return self._share(self.draws, self.is_correct)

    @property
    def robust_share(self) -> np.ndarray:
        """The same under attack `[N]`; the clean point is one of the attack's."""
        return self._share(self.draws_adv, self.is_robust)

    def _share(self, draws: np.ndarray | None, is_right: np.ndarray) -> np.ndarray:
        if draws is None:
            return is_right.astype(float)
        return (draws == self.y[:, None]).mean(axis=1)

    @property
    def clean_accuracy(self) -> float:
        """The share of examples classified correctly."""
        return float(self.clean_share.mean())

    @property
    def robust_accuracy(self) -> float:
        """The share of examples classified correctly, clean and under attack."""
        return float(self.robust_share.mean())

    @property
    def robust_interval(self) -> tuple[float, float]:
        """95% Wilson interval of the robust accuracy, whatever the undecided turn out."""
        share, count = self.robust_share, len(self.y)
        low, _ = wilson(float(share[~self.undecided].sum()), count)
        return low, wilson(float(share.sum()), count)[1]

    @property
    def claimed_accuracy(self) -> float | None:
        """The share of a random model's examples that its attacks say are left, or None.

        What evaluations without fresh draws report: it is below `robust_accuracy` by the
        luck of attacks that look often (github.com/fra31/auto-attack, pull request 105).
        """
        if self.draws is None or self.robust_claimed is None:
            return None
        return float(self.robust_claimed.mean())

    @property
    def adversarial_accuracy(self) -> float:
        """The share of adversarial examples classified correctly: 1 - attack error.

        The literature's "accuracy under FGSM": an example that is wrong on the clean input
        and right under attack counts as right here and as broken in `robust_accuracy`.
        """
        is_right = self.predicted_adv == self.y
        return float(self._share(self.draws_adv, is_right).mean())

    @property
    def reached(self) -> np.ndarray | None:
        """Whether each example is classified as its target under attack `[N]`, or None."""
        return None if self.target is None else self.predicted_adv == self.target

    def _targets_reached(self) -> float | None:
        if self.target is None or self.draws_adv is None:
            return None if self.reached is None else float(self.reached.mean())
        return float((self.draws_adv == self.target[:, None]).mean())

    def summary(self) -> dict[str, Any]:
        """Return every figure of the report as JSON-compatible values."""
        count = len(self.y)
        return {
            "num_examples": count,
            "clean_accuracy": self.clean_accuracy,
            "clean_interval": wilson(float(self.clean_share.sum()), count),
            "robust_accuracy": self.robust_accuracy,
            "robust_interval": self.robust_interval,
            "is_finished": self.is_finished,
            "num_undecided": int(self.undecided.sum()),
            "claimed_accuracy": self.claimed_accuracy,
            "adversarial_accuracy": self.adversarial_accuracy,
            "targets_reached": self._targets_reached(),
            "mean_loss": _mean(self.loss),
            "mean_loss_adv": _mean(self.loss_adv),
            "distance_mean": float(self.distance.mean()),
            "distance_max": float(self.distance.max()),
            "per_class": self.per_class(),
            "per_group": self.per_group(),
            "credit": self.credit(),
            "confusion": self.confusion().tolist(),
            "cost": self.cost,
            "audit": self.audit,
            "settings": self.settings,
        }

    def per_class(self) -> list[dict[str, Any]]:
        """Return count, clean and robust accuracy of each class that occurs."""
        return self._per("class", self.y)

    def per_group(self) -> list[dict[str, Any]]:
        """Return the same for each group: a model can be good on average only."""
        return [] if self.groups is None else self._per("group", self.groups)

    def _per(self, name: str, labels: np.ndarray) -> list[dict[str, Any]]:
        rows = []
        for label in np.unique(labels):
            chosen = labels == label
            rows.append(
                {
                    name: label.item(),
                    "count": int(chosen.sum()),
                    "clean_accuracy": float(self.clean_share[chosen].mean()),
                    "robust_accuracy": float(self.robust_share[chosen].mean()),
                }
            )
        return rows

    def credit(self) -> list[dict[str, Any]]:
        """Return what each attack broke.

        `new_breaks` counts correct examples that the earlier attacks had left,
        `robust_accuracy_after` what was left then; `robust_accuracy_alone` is known only
        if the attacks were run individually. Of a random model both are means over draws.
        """
        rows, left = [], self.clean_share.sum()
        for number, name in enumerate(self.attacks):
            new = self._new_breaks(number, left)
            left = left - new
            row = {
                "attack": name,
                "new_breaks": new,
                "robust_accuracy_after": float(left) / len(self.y),
                "is_finished": number < self.num_finished,
            }
            if self.broken_alone is not None and number < len(self.broken_alone):
                is_left = self.is_correct & ~self.broken_alone[number]
                row["robust_accuracy_alone"] = float(is_left.mean())
            rows.append(row)
        return rows

    def _new_breaks(self, number: int, left: float) -> float:
        """Return how many of those left an attack broke; of a random model the mean."""
        if self.draws is None:
            is_new = (self.broken_by == number) & (self.predicted_adv != self.y)
            return int((self.is_correct & is_new).sum())
        after = self.robust_share
        if self.share_after is not None and number < len(self.share_after):
            after = self.share_after[number]
        return float(left - after.sum())

    def confusion(self, *, under_attack: bool = True) -> np.ndarray:
        """Return how often class i is predicted as class j, `[C, C]`.

        Under attack, an example that is wrong on the clean input counts with its clean
        prediction: the diagonal sums to the robust accuracy, and no attack repairs an
        error. Of a random model: means over the draws. A prediction that is not a number
        is in no column.

        Args:
          under_attack: False counts the predictions on the clean inputs.
        """
        draws = self.draws_adv if under_attack else self.draws
        if draws is None:
            is_attacked = self.is_correct & under_attack
            final = np.where(is_attacked, self.predicted_adv, self.predicted)[:, None]
        else:
            final = draws
        labels = np.broadcast_to(self.y[:, None], final.shape)
        counts = np.zeros((self.num_classes, self.num_classes), int)
        np.add.at(counts, (labels[final >= 0], final[final >= 0]), 1)
        return counts if draws is None else counts / draws.shape[1]

    def citation(self) -> str:
        """Return the BibTeX of the papers behind the attacks of this report."""
        return bibtex(self.papers)

    def robustbench(self, name: str, **fields: Any) -> dict[str, Any]:
        """Return a record in the form of RobustBench's model information.

        Croce et al. 2021, arXiv:2010.09670.

        Args:
          name: Name of the model.
          **fields: What the report cannot know: paper, authors, venue, architecture, ...

        Returns:
          JSON-compatible values; accuracies in percent, as texts.
        """
        return {
            "name": name,
            **fields,
            "eps": str(self.settings.get("eps")),
            "norm": self.settings.get("norm"),
            "clean_acc": f"{100 * self.clean_accuracy:.2f}",
            _measured(self.settings): f"{100 * self.robust_accuracy:.2f}",
            "attack": self.settings.get("attack"),
            "num_examples": len(self.y),
        }

    def save(
        self,
        directory: str | os.PathLike,
        *,
        pictures: bool = True,
        title: str | None = None,
        formats: Sequence[str] = ("png",),
        dpi: int = 200,
    ) -> None:
        """Write figures (`report.json`), arrays (`report.npz`) and pictures.

        Args:
          directory: Created if it is not there.
          pictures: Whether to draw the accuracy after each attack and of each class, and
            the confusion under attack.
          title: Model and data, to stand over the pictures before attack and threat.
          formats: File formats of the pictures: "png", "pdf", "svg", ...
          dpi: Dots per inch of pictures made of pixels; they are 8 inches wide and more.

        Raises:
          OSError: If it cannot be written.
          ValueError: If Matplotlib does not know one of the formats.
        """
        if pictures:
            from jaxrobust.plotting.pictures import check_formats

            check_formats(formats)
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.summary(), indent=2) + "\n"
        (directory / "report.json").write_text(text)
        names = _ARRAYS if self.draws is None else (*_ARRAYS, "draws", "draws_adv")
        names = names if self.is_finished else (*names, "undecided")
        arrays = {name: storable(getattr(self, name)) for name in names}
        np.savez_compressed(directory / "report.npz", **arrays)
        if pictures:
            from jaxrobust.plotting.pictures import save

            save(self, directory, title=title, formats=formats, dpi=dpi)

    def __str__(self) -> str:
        return _text.table(self)


def _mean(values: np.ndarray) -> float:
    """Return the mean of those that are finite: not of logits that are not numbers."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else 0.0


def _measured(settings: dict[str, Any]) -> str:
    """Return RobustBench's name for a robust accuracy: AutoAttack's has its own."""
    attack = str(settings.get("attack"))
    is_standard = re.fullmatch(r"AutoAttack\((channel_axis=[^,]*)?\)", attack)
    return "autoattack_acc" if is_standard else "external"


def storable(array: Any) -> Any:
    """Return bfloat16, which NumPy files lack, as float32."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
