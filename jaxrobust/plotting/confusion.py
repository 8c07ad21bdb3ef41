"""Which class becomes which: the confusion matrix, clean and under attack."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from jaxrobust.plotting.style import name_ticks, one_axes, readable_on

if TYPE_CHECKING:
    from jaxrobust.evaluation.report import Report

# Above this many classes the numbers in the cells could not be read.
_MAX_ANNOTATED = 20


def confusion(
    report: "Report",
    *,
    under_attack: bool = True,
    class_names: tuple[str, ...] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the share of each true class that is predicted as each class, in percent.

    The rows of `report.confusion()`, each divided by its sum. Under attack, an example
    that is wrong on the clean input counts with its clean prediction; the rest off the
    diagonal is where the adversary takes each class.

    Args:
      report: From `jr.evaluate`.
      under_attack: Count the predictions under attack; False: on the clean inputs.
      class_names: Names for the ticks; numbers by default.
      ax: Axes to draw on; a new figure by default.

    Returns:
      The axes; the matrix is the array of `ax.images[0]`.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> x, y = jnp.array([[0.2, 0.6], [0.45, 0.55]]), jnp.array([1, 1])
      >>> report = jr.evaluate(lambda x: x, x, y, attack=jr.FGSM(), threat=jr.Linf(0.1))
      >>> print(confusion(report).images[0].get_array()[1])
      [50. 50.]
    """
    num = report.num_classes
    side = 4.6 if num <= 10 else 7.0
    ax = one_axes(ax, size=(side + 0.9, side))
    counts = report.confusion(under_attack=under_attack)
    # A class that does not occur has a row of zeros.
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = ax.imshow(share, cmap="cividis", vmin=0, vmax=100)
    names = class_names or tuple(map(str, range(num)))
    name_ticks(ax, names, axis="x")
    name_ticks(ax, names, axis="y")
    ax.spines[:].set_visible(False)
    ax.set_xlabel(
        "predicted " + ("under attack" if under_attack else "on clean inputs")
    )
    ax.set_ylabel("true class")
    if num <= _MAX_ANNOTATED:
        for (row, column), value in np.ndenumerate(share):
            if round(value):
                color = readable_on(image.to_rgba(value))
                style = dict(ha="center", va="center", color=color, fontsize=8)
                ax.text(column, row, f"{value:.0f}", **style)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.85)
    bar.set_label("share of the true class (%)")
    return ax
