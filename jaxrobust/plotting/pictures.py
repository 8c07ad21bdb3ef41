"""The pictures of a report: what each attack leaves, each class, the confusion."""

import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrobust.evaluation.intervals import wilson

# Above this many classes only the weakest are drawn.
_MAX_CLASSES = 50


def check_formats(formats: Sequence[str]) -> None:
    """Refuse formats that Matplotlib does not write."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    given = (formats,) if isinstance(formats, str) else formats
    unknown = [name for name in given if name not in known]
    if unknown or isinstance(formats, str):
        raise ValueError(
            f"formats={formats!r}: a sequence of names is needed, such as "
            f'("png", "pdf"), of {", ".join(sorted(known))}.'
        )


def save(
    report: Any,
    directory: pathlib.Path,
    *,
    title: str | None = None,
    formats: Sequence[str] = ("png",),
    dpi: int = 200,
) -> None:
    """Write `accuracy`, `classes` and `confusion`, in each of the formats."""
    import matplotlib.pyplot as plt  # here: nobody should wait for it at import

    from jaxrobust import plotting

    axes = {
        "accuracy": plotting.accuracy_bars(_by_attack(report)),
        "classes": plotting.accuracy_bars(_by_class(report)),
        "confusion": plotting.confusion(report),
    }
    num_classes = len(report.per_class())
    is_cut = num_classes > _MAX_CLASSES
    axes["classes"].set_xlabel(
        f"class: the {_MAX_CLASSES} weakest of {num_classes:,}" if is_cut else "class"
    )
    for name, ax in axes.items():
        figure: Any = ax.figure
        wide = round(11 * figure.get_size_inches()[0])  # letters of size 11
        figure.suptitle(heading(report, title, wide), fontsize=11)
        with plt.rc_context(plotting.STYLE):
            for kind in formats:
                figure.savefig(directory / f"{name}.{kind}", dpi=dpi)
        plt.close(figure)


def heading(report: Any, title: str | None, wide: int) -> str:
    """Return what was evaluated and how, in lines of at most `wide` letters."""
    what = f"{len(report.y):,} examples"
    what = what if title is None else f"{title}, {what}"
    if not report.is_finished:
        what += ", not finished: robust accuracies are upper bounds"
    how = f"{report.settings['attack']}, {report.settings['threat']}"
    lines = textwrap.wrap(how, wide)
    if len(lines) > 3:  # an attack made of many
        lines = [*lines[:3], "..."]
    return "\n".join([*textwrap.wrap(what, wide), *lines])


def _by_attack(report: Any) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Return the accuracy before and after each attack, `credit` as bars."""
    count = len(report.y)
    left = {"clean": report.clean_accuracy}
    if len(report.attacks) < 2:
        left["attacked"] = report.robust_accuracy
    else:
        for row in report.credit():
            left[f"after\n{_wrapped(row['attack'])}"] = row["robust_accuracy_after"]
    return {name: {"all examples": _bar(v, count)} for name, v in left.items()}


def _wrapped(name: str) -> str:
    """Return the name of an attack in short lines, broken after its brackets too."""
    parts = name.replace("(", "( ")
    return textwrap.fill(parts, 18, break_long_words=False).replace("( ", "(")


def _by_class(report: Any) -> dict[str, dict[str, tuple[float, float, float]]]:
    rows = report.per_class()
    if len(rows) > _MAX_CLASSES:
        rows = sorted(rows, key=lambda row: row["robust_accuracy"])[:_MAX_CLASSES]
    return {
        str(row["class"]): {
            "clean": _bar(row["clean_accuracy"], row["count"]),
            "attacked": _bar(row["robust_accuracy"], row["count"]),
        }
        for row in rows
    }


def _bar(share: float, count: int) -> tuple[float, float, float]:
    """Return an accuracy with its interval."""
    return (share, *wilson(int(np.rint(share * count)), count))
