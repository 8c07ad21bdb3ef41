"""Adversarial examples next to what they were made of."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes

from jaxrobust.plotting.style import COLORS, new_axes, to_axes_array

if TYPE_CHECKING:
    from jaxrobust.evaluation.report import Report

_ROWS = ("clean", "perturbation", "adversarial")
_IN_A_ROW = 8


def gallery(
    report: "Report",
    x: ArrayLike,
    *,
    index: Any = None,
    class_names: tuple[str, ...] | None = None,
    axes: Any = None,
) -> np.ndarray:
    """Draw clean input, perturbation and adversarial input, a column for each example.

    Goodfellow et al. 2015, arXiv:1412.6572, figure 1. Above the inputs stand the
    predicted class and its confidence, wrong ones in vermillion; above the
    perturbation its largest change, in the units of the data. Perturbations of one
    channel are blue where darkened and red where brightened; those of colours are shown
    around grey, stretched to the full range. Signals are drawn as lines, one for each
    channel, the clean ones in grey below the adversarial ones.

    Args:
      report: From `jr.evaluate` on `x`.
      x: The clean inputs: images `[N, H, W, C]` in [0, 1], C = 1 or 3, or signals `[N, T]`
        or `[N, T, C]`. Images `[N, H, W]` without a channel axis: give `x[..., None]`.
      index: Which examples; by default the first of each of the first five classes.
      class_names: Names to print; numbers by default.
      axes: Axes `[3, len(index)]` to draw on; by default a new figure, with at most
        eight examples beside each other.

    Returns:
      The axes `[3, len(index)]`.

    Raises:
      ValueError: If `x` does not fit the report, or the axes not the index.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> x, y = jnp.full((2, 4, 4, 1), 0.5), jnp.array([0, 1])
      >>> logits_fn = lambda x: x.reshape(len(x), -1)[:, :3]
      >>> report = jr.evaluate(logits_fn, x, y, attack=jr.FGSM(), threat=jr.Linf(0.1))
      >>> axes = gallery(report, x)
      >>> print(axes.shape, axes[1, 0].get_title())
      (3, 2) max 0.1
    """
    clean = _check_inputs(np.asarray(x, np.float32), report.x_adv.shape)
    x_adv = np.asarray(report.x_adv, np.float32).reshape(clean.shape)
    chosen = _first_of_each_class(report.y) if index is None else np.asarray(index)
    if not len(chosen):
        raise ValueError("index is empty: there is no example to draw.")
    across = len(chosen)
    if axes is None:
        # Rows of equal length: 10 examples are 5 and 5.
        across = -(-len(chosen) // -(-len(chosen) // _IN_A_ROW))
        axes = _new_axes(len(chosen), across, is_signal=clean.ndim < 4)
    axes = to_axes_array(axes, (3, len(chosen)))
    names = class_names or tuple(map(str, range(report.num_classes)))
    for column, i in zip(axes.T, chosen, strict=True):
        _draw(column, clean[i], x_adv[i])
        for ax, predicted, confidence in (
            (column[0], report.predicted[i], report.confidence[i]),
            (column[2], report.predicted_adv[i], report.confidence_adv[i]),
        ):
            color = "black" if predicted == report.y[i] else COLORS["vermillion"]
            text = f"{names[predicted]}, {100 * confidence:.0f}%"
            ax.set_title(text, fontsize=9, color=color)
    for column in axes.T[::across]:
        for ax, name in zip(column, _ROWS, strict=True):
            ax.set_ylabel(name, fontsize=9)
    return axes


def _check_inputs(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if x.shape not in (shape, (*shape, 1)) or x.ndim not in (2, 3, 4):
        raise ValueError(
            f"x has shape {x.shape} and the report is of {shape}: the images "
            "[N, H, W, C] or signals [N, T] or [N, T, C] that were evaluated are needed."
        )
    if x.ndim == 4 and x.shape[-1] not in (1, 3):
        raise ValueError(
            f"x has shape {x.shape}: images [N, H, W, C] with one channel or three are "
            "drawn, the channels last. Give three of them at most, or channels last."
        )
    return x


def _new_axes(num: int, across: int, *, is_signal: bool) -> np.ndarray:
    """Return axes `[3, num]` on a new figure, `across` of them in a row."""
    blocks = -(-num // across)
    width, height = (2.2, 1.4) if is_signal else (1.4, 1.6)
    size = (width * across + 0.4, height * 3 * blocks)
    grid = new_axes(3 * blocks, across, size=size)
    axes = np.concatenate(np.split(grid, blocks), axis=1)
    for ax in axes[:, num:].flat:
        ax.set_axis_off()
    return axes[:, :num]


def _first_of_each_class(y: np.ndarray) -> np.ndarray:
    labels, first = np.unique(y, return_index=True)
    return first[np.argsort(labels)][:5]


def _draw(column: np.ndarray, clean: np.ndarray, x_adv: np.ndarray) -> None:
    delta = x_adv - clean
    scale = float(np.abs(delta).max())
    if clean.ndim < 3:
        _draw_signals(column, clean, x_adv)
    else:
        # A perturbation of zero is drawn as such, without a division by zero.
        _draw_images(column, clean, x_adv, delta / max(scale, 1e-6))
    column[1].set_title(f"max {scale:.2g}", fontsize=9)


def _draw_images(column: Any, clean: Any, x_adv: Any, shown: np.ndarray) -> None:
    has_colors = clean.shape[-1] > 1
    _image(column[0], clean)
    _image(column[2], x_adv)
    if has_colors:
        _image(column[1], 0.5 + shown / 2)
    else:
        column[1].imshow(shown[..., 0], cmap="RdBu_r", vmin=-1.2, vmax=1.2)
        _bare(column[1])


def _draw_signals(column: Any, clean: Any, x_adv: Any) -> None:
    """Draw lines over time; clean and adversarial ones to the same scale."""
    column[0].plot(clean, linewidth=1)
    column[1].plot(x_adv - clean, linewidth=1)
    column[2].plot(clean, color="0.75", linewidth=1)
    drawn = column[2].plot(x_adv, linewidth=1)
    for line, clean_line in zip(drawn, column[0].lines, strict=True):
        line.set_color(clean_line.get_color())
    column[0].set_ylim(column[2].get_ylim())
    for ax in column:
        ax.tick_params(labelsize=6, length=2)


def _image(ax: Axes, image: np.ndarray) -> None:
    squeezed = image[..., 0] if image.shape[-1] == 1 else np.clip(image, 0, 1)
    ax.imshow(squeezed, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    _bare(ax)


def _bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(True)
    ax.spines[:].set_linewidth(0.5)
