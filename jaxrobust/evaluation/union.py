"""Robustness to several threats at once: a report for each, and their union."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from jaxrobust._core.citations import bibtex
from jaxrobust.evaluation import _single, _text
from jaxrobust.evaluation.intervals import wilson
from jaxrobust.evaluation.queue import _random, _saved
from jaxrobust.evaluation.report import Report
from jaxrobust.types import LogitsFn


@dataclasses.dataclass(frozen=True)
class UnionReport:
    """What withstands each of several threats, and what withstands all of them.

    Tramer & Boneh 2019, arXiv:1904.13000. Made by `evaluate` for a list of threats. An
    example counts in the union if it is robust under every threat: the adversary
    chooses among all points that it has found.

    Args:
      reports: One for each threat, each of all examples: what an evaluation under this
        threat alone reports.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> x, y = jnp.array([[0.2, 0.6], [0.45, 0.55]]), jnp.array([1, 1])
      >>> threats = [jr.Linf(0.1), jr.L2(0.01)]
      >>> union = jr.evaluate(lambda x: x, x, y, attack=jr.FGSM(), threat=threats)
      >>> print([report.robust_accuracy for report in union.reports], union.robust_accuracy)
      [0.5, 1.0] 0.5
    """

    reports: tuple[Report, ...]

    @property
    def clean_accuracy(self) -> float:
        """The share of examples classified correctly."""
        return self.reports[0].clean_accuracy

    @property
    def is_robust(self) -> np.ndarray:
        """Whether each example is robust under every threat `[N]`."""
        return np.all([report.is_robust for report in self.reports], axis=0)

    @property
    def is_finished(self) -> bool:
        """Whether all attacks have ended; if not, the figures are upper bounds."""
        return all(report.is_finished for report in self.reports)

    @property
    def undecided(self) -> np.ndarray:
        """Which examples count as robust and were still to be attacked `[N]`."""
        undecided = np.any([report.undecided for report in self.reports], axis=0)
        return self.is_robust & undecided

    @property
    def robust_accuracy(self) -> float:
        """The share of examples that are robust under every threat."""
        return float(self.is_robust.mean())

    @property
    def average_accuracy(self) -> float:
        """The mean of the robust accuracies, as the literature states it too."""
        return float(np.mean([report.robust_accuracy for report in self.reports]))

    @property
    def robust_interval(self) -> tuple[float, float]:
        """95% Wilson interval of the robust accuracy, whatever the undecided turn out."""
        count, num_robust = len(self.is_robust), int(self.is_robust.sum())
        low, _ = wilson(num_robust - int(self.undecided.sum()), count)
        return low, wilson(num_robust, count)[1]

    def rows(self) -> list[dict[str, Any]]:
        """Return threat, attack and robust accuracy of each report, with its interval."""
        return [
            {
                "threat": report.settings["threat"],
                "attack": report.settings["attack"],
                "robust_accuracy": report.robust_accuracy,
                "robust_interval": report.robust_interval,
                "is_finished": report.is_finished,
            }
            for report in self.reports
        ]

    def summary(self) -> dict[str, Any]:
        """Return every figure as JSON-compatible values."""
        return {
            "num_examples": len(self.is_robust),
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "robust_interval": self.robust_interval,
            "is_finished": self.is_finished,
            "num_undecided": int(self.undecided.sum()),
            "average_accuracy": self.average_accuracy,
            "reports": [report.summary() for report in self.reports],
        }

    def citation(self) -> str:
        """Return the BibTeX of the papers behind the attacks of all reports."""
        papers = (key for report in self.reports for key in report.papers)
        return bibtex(tuple(dict.fromkeys(papers)))

    def save(self, directory: str | os.PathLike, **options: Any) -> None:
        """Write `union.json`, and each report into a directory of its own.

        Args:
          directory: Created if it is not there. The reports are in `1-Linf`, `2-L2`, ...,
            by their threats.
          **options: Further arguments of `Report.save`.

        Raises:
          OSError: If it cannot be written.
          ValueError: If Matplotlib does not know one of the formats.
        """
        directory = pathlib.Path(directory)
        for number, report in enumerate(self.reports, 1):
            report.save(directory / f"{number}-{report.settings['norm']}", **options)
        text = json.dumps(self.summary(), indent=2) + "\n"
        (directory / "union.json").write_text(text)

    def __str__(self) -> str:
        return _text.union(self)


def is_several(threat: Any) -> bool:
    """Whether it is a list of threats; a threat may be a tuple with names."""
    return isinstance(threat, list) or type(threat) is tuple


def evaluate(
    logits_fn: LogitsFn, x: Any, y: Any, attack: Any, threats: Any, options: Any
) -> UnionReport:
    """Evaluate under one threat after the other; see `evaluate` in evaluate.py."""
    attacks = _attacks(attack, threats)
    if _random.is_random(logits_fn):
        raise ValueError(
            "threat is a list and logits_fn a random model, whose points are worth a share "
            "each: call evaluate once for each threat."
        )
    # All are checked before the first begins.
    paths = [_path(options.state_file, k) for k in range(len(threats))]
    ready = [
        _single.prepare(
            logits_fn,
            x,
            y,
            attack,
            threat,
            dataclasses.replace(options, state_file=path, keeps_state=True),
        )
        for attack, threat, path in zip(attacks, threats, paths, strict=True)
    ]
    union = UnionReport(tuple(map(_single.run, ready)))
    for path in paths:
        if path is not None and union.is_finished:
            _saved.remove(path)
    return union


def _attacks(attack: Any, threats: Any) -> list[Any]:
    """Return an attack for each threat."""
    if not threats:
        raise ValueError("threat is an empty list: pass at least one threat.")
    if not is_several(attack):
        return [attack] * len(threats)
    if len(attack) != len(threats):
        raise ValueError(
            f"{len(attack)} attacks and {len(threats)} threats: pass one attack for all "
            "threats, or one for each. Several attacks under one threat are "
            "jr.WorstOf((...))."
        )
    return list(attack)


def _path(state_file: str | os.PathLike | None, number: int) -> pathlib.Path | None:
    """Return the state file of one of the threats."""
    if state_file is None:
        return None
    path = pathlib.Path(state_file)
    return path.with_name(f"{path.stem}-{number + 1}{path.suffix}")
