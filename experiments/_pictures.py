"""Pictures of the experiments, drawn by `jaxrobust.plotting`."""

import pathlib
import textwrap
from collections.abc import Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")  # pictures go to files; no display is needed
import matplotlib.pyplot as plt
import numpy as np

from experiments._common import Pictures, text_of
from experiments.table import COLUMNS, LECTURE, ROWS
from jaxrobust import plotting

# Examples in a row of a gallery, three pictures each.
_IN_A_ROW = 3
COLORS = {
    row: plotting.COLORS[name]
    for row, name in zip(ROWS, ("blue", "orange", "vermillion"), strict=True)
}


def table_chart(
    result: dict[str, Any], path: pathlib.Path, pictures: Pictures
) -> list[pathlib.Path]:
    """Draw the table as bars with 95% intervals; the lecture's figures as ticks."""

    def label(row: str) -> str:
        return "natural images" if row == "natural" else f"under {row}"

    def cell(training: str, row: str) -> tuple[float, float, float]:
        figures = result["table"][training]["cells"][row]
        return figures["accuracy"], figures["low"], figures["high"]

    groups = {training: f"{training} training" for training in COLUMNS}
    config = result["config"]
    lecture = None
    if config["dataset"] == "cifar10":
        lecture = {
            groups[t]: {label(row): LECTURE[t][row] / 100 for row in ROWS}
            for t in COLUMNS
        }
    ax = plotting.accuracy_bars(
        {groups[t]: {label(row): cell(t, row) for row in ROWS} for t in COLUMNS},
        colors={label(row): COLORS[row] for row in ROWS},
        reference=lecture,
        reference_label="lecture",
    )
    figure: Any = ax.figure
    figure.suptitle(
        rf"{config['dataset']}, $\ell_\infty$, $\epsilon$ = {text_of(config['eps'])}, "
        f"{result['num_test']:,} test images"
    )
    return _save(figure, path, pictures)


def pareto_chart(
    result: dict[str, Any], path: pathlib.Path, pictures: Pictures
) -> list[pathlib.Path]:
    """Draw each method at its clean and robust accuracy; a line joins the best trades."""
    with plt.rc_context(plotting.STYLE):
        figure, ax = plt.subplots(figsize=(6, 4.5), layout="constrained")
        points = {}
        for method, row in result["rows"].items():
            figures = row["accuracies"]
            clean, robust = figures["clean"], figures[list(figures)[-1]]
            points[method] = (100 * clean["mean"], 100 * robust["mean"])
            spread = [[100 * (f["std"] or 0)] for f in (clean, robust)]
            ax.errorbar(*points[method], spread[1], spread[0], fmt="o", ms=4, lw=0.8)
            ax.annotate(
                method,
                points[method],
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=7,
            )
        front = [
            p for p in points.values() if not any(_beats(q, p) for q in points.values())
        ]
        ax.plot(*zip(*sorted(front), strict=True), color="0.6", lw=1, zorder=0)
        ax.set(xlabel="clean accuracy, %", ylabel=f"under {list(figures)[-1]}, %")
    return _save(figure, path, pictures)


def _beats(q: tuple[float, float], p: tuple[float, float]) -> bool:
    """Return whether q is at least as good as p in both, and better in one."""
    return q[0] >= p[0] and q[1] >= p[1] and q != p


def chosen(y: np.ndarray, num: int = 3) -> list[int]:
    """Return the first example of each of the first `num` classes that occur."""
    first = np.unique(y, return_index=True)[1]
    return [int(i) for i in first[:num]]


def gallery(
    reports: Mapping[str, Any],
    x: np.ndarray,
    path: pathlib.Path,
    pictures: Pictures,
    *,
    title: str,
    class_names: tuple[str, ...] | None = None,
    num: int = 3,
) -> list[pathlib.Path]:
    """Draw clean, perturbation and adversarial input of `num` examples of each report.

    Three examples, nine pictures, stand in a row; others go below.
    """
    picked = {name: chosen(report.y, num) for name, report in reports.items()}
    rows = [
        (name if start == 0 else "", report, picked[name][start : start + _IN_A_ROW])
        for name, report in reports.items()
        for start in range(0, len(picked[name]), _IN_A_ROW)
    ]
    across = 3 * min(_IN_A_ROW, max(map(len, picked.values())))
    size = (1.35 * across + 0.4, 0.7 + 1.6 * len(rows))
    with plt.rc_context(plotting.STYLE):
        figure, axes = plt.subplots(len(rows), across, figsize=size, squeeze=False)
    for row, (name, report, index) in zip(axes, rows, strict=True):
        for ax in row[3 * len(index) :]:
            ax.set_axis_off()
        plotting.gallery(
            report,
            x[: len(report.y)],
            index=index,
            class_names=class_names,
            axes=row[: 3 * len(index)].reshape(len(index), 3).T,
        )
        for ax in row:
            ax.set_ylabel("")
        row[0].set_ylabel(name, fontsize=10)
    figure.suptitle(textwrap.fill(title, round(11 * size[0])), fontsize=11)
    return _save(figure, path, pictures)


def _save(figure: Any, path: pathlib.Path, pictures: Pictures) -> list[pathlib.Path]:
    with plt.rc_context(plotting.STYLE):
        files = pictures.save(figure, path)
    plt.close(figure)
    return files
