"""The pictures of a report: what each attack leaves, each class, the confusion."""

import pathlib
from typing import Any

import numpy as np

from jaxrobust.evaluation.intervals import wilson


def save(report: Any, directory: pathlib.Path) -> None:
    """Write `accuracy.png`, `classes.png` and `confusion.png`."""
    import matplotlib.pyplot as plt  # here: nobody should wait for it at import

    from jaxrobust import plotting

    axes = {
        "accuracy": plotting.accuracy_bars(_by_attack(report)),
        "classes": plotting.accuracy_bars(_by_class(report)),
        "confusion": plotting.confusion(report),
    }
    for name, ax in axes.items():
        figure: Any = ax.figure
        figure.savefig(directory / f"{name}.png")
        plt.close(figure)


def _by_attack(report: Any) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Return the accuracy before and after each attack, `credit` as bars."""
    count = len(report.y)
    left = {"clean": report.clean_accuracy}
    if len(report.attacks) < 2:
        left["attacked"] = report.robust_accuracy
    else:
        for row in report.credit():
            left[f"after\n{row['attack']}"] = row["robust_accuracy_after"]
    return {name: {"all examples": _bar(v, count)} for name, v in left.items()}


def _by_class(report: Any) -> dict[str, dict[str, tuple[float, float, float]]]:
    return {
        str(row["class"]): {
            "clean": _bar(row["clean_accuracy"], row["count"]),
            "attacked": _bar(row["robust_accuracy"], row["count"]),
        }
        for row in report.per_class()
    }


def _bar(share: float, count: int) -> tuple[float, float, float]:
    """Return an accuracy with its interval."""
    return (share, *wilson(int(np.rint(share * count)), count))
