"""A function of two variables and the paths of optimisers on it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from jaxrobust.plotting.style import COLORS, one_axes


def contour(
    function: Callable[[jax.Array], jax.Array],
    paths: Mapping[str, Any] | None = None,
    *,
    limits: tuple[tuple[float, float], tuple[float, float]] = ((-1, 1), (-1, 1)),
    levels: Any = 14,
    num: int = 121,
    ax: Axes | None = None,
) -> Axes:
    """Draw the level lines of a function of two variables, with optimisation paths.

    A path begins at a dot; steps that leave the limits are cut off, so that a diverging
    path shows as one.

    Args:
      function: From a point `[2]` to a number, in JAX.
      paths: Iterates `[T, 2]` by name; the names stand in the legend.
      limits: `((left, right), (bottom, top))`.
      levels: Number of levels, or the levels themselves.
      num: Points of the grid on each axis.
      ax: Axes to draw on; a new figure by default.

    Returns:
      The axes.

    Example:
      >>> import numpy as np
      >>> ax = contour(lambda w: (w**2).sum(), {"path": np.array([[1, 1], [0, 0]])})
      >>> print(ax.lines[0].get_label(), ax.get_xlabel())
      path $w_1$
    """
    ax = one_axes(ax)
    w1, w2 = (np.linspace(*limit, num) for limit in limits)
    points = jnp.stack(jnp.meshgrid(w1, w2), axis=-1)
    values = jax.vmap(jax.vmap(function))(points)
    ax.contourf(w1, w2, values, levels, cmap="Greys", alpha=0.35, extend="both")
    ax.contour(w1, w2, values, levels, colors="0.55", linewidths=0.6)
    colors = list(COLORS.values())
    for i, (name, path) in enumerate((paths or {}).items()):
        steps, color = np.asarray(path, float), colors[i % len(colors)]
        ax.plot(*steps.T, ".-", color=color, label=name, linewidth=1.3, markersize=5)
        ax.plot(*steps[0], "o", color=color, markersize=7)
    ax.set_xlim(*limits[0])
    ax.set_ylim(*limits[1])
    ax.set_xlabel("$w_1$")
    ax.set_ylabel("$w_2$")
    if paths:
        ax.legend(frameon=True, framealpha=0.9, edgecolor="none")
    return ax
