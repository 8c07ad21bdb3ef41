"""Accuracies with their intervals: over eps as curves, over models as bars."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes

from jaxrobust.evaluation.intervals import wilson
from jaxrobust.plotting.style import inches, name_ticks, one_axes


def robustness_curve(
    eps: ArrayLike,
    is_robust: ArrayLike,
    *,
    label: str | None = None,
    unit: str = r"$\ell_\infty$, units of the data",
    ax: Axes | None = None,
    **line: Any,
) -> Axes:
    """Draw accuracy against eps, with 95% Wilson intervals as a band.

    Carlini et al. 2019, arXiv:1902.06705, section 5: report attack success over a range of
    budgets, up to where the accuracy is 0. Call it again with `ax` for the next model.

    Args:
      eps: The K radii.
      is_robust: Booleans `[K, N]`: whether example i stands at radius k, for example
        `np.stack([report.is_robust for report in reports])`.
      label: Name in the legend.
      unit: Norm and unit of `eps`, for the label of the axis.
      ax: Axes to draw on; a new figure by default.
      **line: Settings of the line, such as `color` or `linestyle`.

    Returns:
      The axes.

    Raises:
      ValueError: If `is_robust` does not have one row for each eps.

    Example:
      >>> import numpy as np
      >>> ax = robustness_curve([0.0, 0.1], np.array([[1, 1, 1, 0], [1, 0, 0, 0]]))
      >>> print(ax.lines[0].get_ydata())
      [75. 25.]
    """
    radii, hits = np.asarray(eps, float), np.asarray(is_robust)
    if hits.ndim != 2 or len(hits) != len(radii):
        raise ValueError(
            f"is_robust has shape {hits.shape}, but [{len(radii)}, N] is needed: one row "
            "of booleans for each eps."
        )
    ax = one_axes(ax)
    bands = np.array([wilson(float(row.sum()), len(row)) for row in hits])
    style: dict[str, Any] = {"marker": "o"} | line
    (drawn,) = ax.plot(radii, 100 * hits.mean(axis=1), label=label, **style)
    ax.fill_between(
        radii, *(100 * bands.T), color=drawn.get_color(), alpha=0.2, linewidth=0
    )
    ax.set_xlabel(rf"$\epsilon$ ({unit})")
    ax.set_ylabel("accuracy (%)")
    ax.set_ylim(-2, 102)
    if label is not None:
        ax.legend(frameon=False)
    return ax


def accuracy_bars(
    cells: Mapping[str, Mapping[str, tuple[float, float, float]]],
    *,
    colors: Mapping[str, str] | None = None,
    reference: Mapping[str, Mapping[str, float]] | None = None,
    reference_label: str = "reference",
    ax: Axes | None = None,
) -> Axes:
    """Draw a table of accuracies as groups of bars with their intervals.

    Madry et al. 2018, arXiv:1706.06083, the table of figure 4, as a picture: a group for
    each model, a bar for each evaluation.

    Args:
      cells: `{group: {bar: (accuracy, low, high)}}`, shares in [0, 1].
      colors: A colour for each bar; the style's by default.
      reference: Accuracies to compare with, drawn as ticks; `{group: {bar: share}}`.
      reference_label: What the ticks are called in the legend.
      ax: Axes to draw on; a new figure by default, wider for many bars.

    Returns:
      The axes.

    Example:
      >>> cells = {"standard": {"natural": (0.9, 0.8, 0.95), "PGD": (0.1, 0.0, 0.2)}}
      >>> ax = accuracy_bars(cells)
      >>> print([round(float(bar.get_height()), 1) for bar in ax.patches])
      [90.0, 10.0]
    """
    bars = list(next(iter(cells.values())))
    num_bars = len(cells) * len(bars)
    widest = max(len(line) for name in cells for line in name.split("\n"))
    wide = max(8.0, 2.0 + 0.45 * num_bars, 1.5 + 0.1 * (widest + 1) * len(cells))
    ax = one_axes(ax, size=(min(wide, 16.0), 4.5))
    width = 0.8 / len(bars)
    for i, bar in enumerate(bars):
        at = np.arange(len(cells)) + (i - (len(bars) - 1) / 2) * width
        values = np.array([group[bar] for group in cells.values()])
        color = None if colors is None else colors[bar]
        _bars(ax, at, 100 * values, width, label=bar, color=color)
        if reference is not None:
            ticks = [100 * reference[group][bar] for group in cells]
            label = reference_label if i == len(bars) - 1 else None
            ax.plot(at, ticks, "k_", markersize=16, label=label)
    ax.set_xlim(-0.6, len(cells) - 0.4)
    name_ticks(ax, list(cells), axis="x")
    ax.set_ylabel("accuracy (%)")
    ax.set_ylim(0, 115)
    ax.set_yticks(range(0, 101, 20))
    if len(bars) > 1 or reference is not None:
        # Above the bars: below, the names may need any room.
        place = (0.5, 1.0)
        ax.legend(ncols=4, loc="lower center", bbox_to_anchor=place, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _bars(
    ax: Axes, at: np.ndarray, values: np.ndarray, width: float, **style: Any
) -> None:
    """Draw one bar of every group; `values` are rows (height, low, high) in percent."""
    height, low, high = values.T
    room = inches(ax, "x") * width / (len(at) + 0.2)
    # An accuracy of 0 or 1 may lie outside of its interval by rounding.
    error = np.maximum((height - low, high - height), 0)
    ax.bar(at, height, 0.92 * width, yerr=error, capsize=min(3, 20 * room), **style)
    # Numbers side by side, upright where the bars are narrow, or none: never on each other.
    is_upright = room < 0.32
    if room < 0.13:
        return
    for x, value, top in zip(at, height, high, strict=True):
        ax.text(
            x,
            top + (2.5 if is_upright else 1.5),
            f"{value:.1f}",
            ha="center",
            va="bottom",
            rotation=90 if is_upright else 0,
            fontsize=8 if is_upright else 9,
        )
