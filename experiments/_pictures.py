"""Pictures of the robustness table, with one style."""

import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")  # pictures go to files; no display is needed
import matplotlib.pyplot as plt
import numpy as np

from experiments._table import COLUMNS, LECTURE, ROWS

# Okabe & Ito 2008: distinguishable with every common form of colour blindness.
COLORS = {"natural": "#0072B2", "FGSM": "#E69F00", "PGD": "#D55E00"}


def table_chart(result: dict[str, Any], path: pathlib.Path) -> None:
    """Draw the table as bars with 95% intervals; the lecture's figures as ticks."""
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    width = 0.26
    for i, row in enumerate(ROWS):
        cells = [result["table"][training]["cells"][row] for training in COLUMNS]
        height = np.array([100 * c["accuracy"] for c in cells])
        error = [
            height - [100 * c["low"] for c in cells],
            [100 * c["high"] for c in cells] - height,
        ]
        at = np.arange(len(COLUMNS)) + (i - 1) * width
        label = "natural images" if row == "natural" else f"under {row}"
        axes.bar(
            at,
            height,
            0.92 * width,
            yerr=error,
            capsize=3,
            color=COLORS[row],
            label=label,
        )
        for x, value in zip(at, height, strict=True):
            axes.text(x, value + 2.5, f"{value:.1f}", ha="center", fontsize=9)
        if result["config"]["dataset"] == "cifar10":
            lecture = [LECTURE[training][row] for training in COLUMNS]
            axes.plot(
                at, lecture, "k_", markersize=16, label="lecture" if i == 2 else None
            )
    axes.set_xticks(range(len(COLUMNS)), [f"{name} training" for name in COLUMNS])
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    config = result["config"]
    axes.set_title(
        rf"{config['dataset']}, $\ell_\infty$, $\epsilon$ = {config['eps']:.3g}, "
        f"{result['num_test']:,} test images",
        fontsize=11,
    )
    axes.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


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
    clean = data.images(data.x_test)
    figure, axes = plt.subplots(
        len(reports),
        3 * num,
        figsize=(3.3 * num, 0.6 + 1.45 * len(reports)),
        layout="constrained",
        squeeze=False,
    )
    picked = chosen(data, num)
    for row, (name, report) in zip(axes, reports.items(), strict=True):
        for k, i in enumerate(picked):
            _triple(row[3 * k : 3 * k + 3], data, report, clean, i)
        row[0].set_ylabel(name, fontsize=10)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _triple(axes, data, report, clean: np.ndarray, i: int) -> None:
    delta = report.x_adv[i] - clean[i]
    scale = max(float(np.abs(delta).max()), 1e-6)
    images = clean[i], 0.5 + delta / (2 * scale), report.x_adv[i]
    for ax, image in zip(axes, images, strict=True):
        ax.imshow(
            np.squeeze(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
        )
        ax.set_xticks([])
        ax.set_yticks([])
    names = data.class_names
    for ax, predicted, confidence in (
        (axes[0], report.predicted[i], report.confidence[i]),
        (axes[2], report.predicted_adv[i], report.confidence_adv[i]),
    ):
        is_right = predicted == report.y[i]
        ax.set_title(
            f"{names[predicted]} {100 * confidence:.0f}%",
            fontsize=8,
            color="black" if is_right else COLORS["PGD"],
        )
    axes[1].set_title(f"max {scale:.2g}", fontsize=8)
