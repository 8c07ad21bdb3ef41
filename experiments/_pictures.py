"""Pictures of the experiments, drawn by `jaxrobust.plotting`."""

import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")  # pictures go to files; no display is needed
import matplotlib.pyplot as plt
import numpy as np

from experiments.table import COLUMNS, LECTURE, ROWS
from jaxrobust import plotting

COLORS = {
    row: plotting.COLORS[name]
    for row, name in zip(ROWS, ("blue", "orange", "vermillion"), strict=True)
}


def table_chart(result: dict[str, Any], path: pathlib.Path) -> None:
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
    ax.set_title(
        rf"{config['dataset']}, $\ell_\infty$, $\epsilon$ = {config['eps']:.3g}, "
        f"{result['num_test']:,} test images"
    )
    _save(ax, path)


def chosen(data, num: int = 5) -> list[int]:
    """Return the first test image of each of `num` classes."""
    return [int(np.argmax(data.y_test == label)) for label in range(num)]


def gallery(
    data,
    reports: dict[str, Any],
    path: pathlib.Path,
    *,
    title: str,
    num: int = 5,
) -> None:
    """Draw clean image, perturbation and adversarial image, a row for each report."""
    size = (3.3 * num, 0.6 + 1.45 * len(reports))
    with plt.rc_context(plotting.STYLE):
        figure, axes = plt.subplots(len(reports), 3 * num, figsize=size, squeeze=False)
    picked = chosen(data, num)
    for row, (name, report) in zip(axes, reports.items(), strict=True):
        plotting.gallery(
            report,
            data.images(data.x_test[: len(report.y)]),
            index=picked,
            class_names=data.class_names,
            axes=row.reshape(num, 3).T,
        )
        for ax in row:
            ax.set_ylabel("")
        row[0].set_ylabel(name, fontsize=10)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _save(ax: Any, path: pathlib.Path) -> None:
    ax.figure.savefig(path, dpi=150)
    plt.close(ax.figure)
