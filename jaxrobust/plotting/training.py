"""Loss and accuracy over the epochs of a training run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrobust.plotting.style import COLORS, new_axes, to_axes_array

# What `jr.training.fit` records: panel, name in the history, label, colour, line.
_LINES = (
    (0, "train_loss", "training objective", "black", "-"),
    (1, "train_accuracy", "training batches, as trained on", "black", "-"),
    (1, "val_clean", "validation, clean", "blue", "-"),
    (1, "val_robust", "validation, under attack", "vermillion", "-"),
)


def training_curves(
    history: Sequence[Mapping[str, Any]],
    *,
    label: str | None = None,
    linestyle: str | None = None,
    axes: Any = None,
) -> np.ndarray:
    """Draw what `jr.training.fit` records: the loss, and the accuracies, by epoch.

    Rice et al. 2020, arXiv:2002.11569, figure 1: where validation under attack turns down
    while training goes on upwards, the model overfits robustly.

    Args:
      history: One mapping for each epoch, `FitResult.history`; with `epoch` and any of
        train_loss, train_accuracy, val_clean, val_robust. Others are not drawn.
      label: Name of the run, put before the names of its lines.
      linestyle: To tell two runs on the same axes apart.
      axes: Two axes to draw on; a new figure by default.

    Returns:
      The two axes: loss and accuracy.

    Raises:
      ValueError: If there are no epochs, or not two axes.

    Example:
      >>> history = [dict(epoch=1, train_loss=2.0), dict(epoch=2, train_loss=1.0)]
      >>> loss, accuracy = training_curves(history)
      >>> print(loss.lines[0].get_ydata(), loss.get_xlabel())
      [2. 1.] epoch
    """
    if not history:
        raise ValueError("history holds no epochs: there is nothing to draw.")
    axes = new_axes(1, 2, size=(8.5, 3.2))[0] if axes is None else axes
    axes = to_axes_array(axes, (2,))
    epochs = [row["epoch"] for row in history]
    for panel, name, text, color, style in _LINES:
        if name in history[0] and history[0][name] is not None:
            is_accuracy = panel == 1
            values = np.array([row[name] for row in history], float)
            axes[panel].plot(
                epochs,
                100 * values if is_accuracy else values,
                linestyle or style,
                color=COLORS[color],
                label=text if label is None else f"{label}: {text}",
            )
    axes[0].set_ylabel("loss (nats)")
    axes[1].set_ylabel("accuracy (%)")
    for ax in axes:
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
        if ax.lines:
            ax.legend(frameon=False)
    return axes
