"""The one style: colours that everyone can tell apart, few lines, room for the data."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

# Okabe & Ito 2008: distinguishable with every common form of colour blindness.
COLORS = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "orange": "#E69F00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "black": "#000000",
}

STYLE: dict[str, Any] = {
    "axes.prop_cycle": plt.cycler(color=list(COLORS.values())),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "image.cmap": "cividis",
    "figure.dpi": 90,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # text as TrueType: publishers refuse Type 3
    "figure.constrained_layout.use": True,
}


def use_style() -> None:
    """Make `STYLE` the default of every figure that follows, of notebooks for example.

    Okabe & Ito 2008, "Color Universal Design", for the colours. The functions of this
    package use the style for the figures that they make, with or without this call.

    Example:
      >>> import matplotlib.pyplot as plt
      >>> with plt.rc_context():
      ...     use_style()
      ...     print(plt.rcParams["axes.spines.top"])
      False
    """
    plt.rcParams.update(STYLE)


def new_axes(
    num_rows: int = 1,
    num_columns: int = 1,
    *,
    size: tuple[float, float] = (4.8, 3.4),
) -> np.ndarray:
    """Return the axes `[num_rows, num_columns]` of a new figure; `size` in inches."""
    with plt.rc_context(STYLE):
        _, axes = plt.subplots(num_rows, num_columns, figsize=size, squeeze=False)
        is_interactive = plt.isinteractive()
    # The first figure starts a notebook's backend, which turns the interactive mode on; the
    # context would turn it off again, and with it the display of every later figure.
    plt.interactive(is_interactive)
    return axes


def one_axes(ax: Axes | None, **options: Any) -> Axes:
    """Return the given axes, or those of a new figure."""
    return new_axes(**options)[0, 0] if ax is None else ax


def inches(ax: Axes, axis: str) -> float:
    """Return the extent of the axes along "x" or "y", before the layout is made."""
    place, figure = ax.get_position(), ax.figure.get_figure(root=True)
    width, height = figure.get_size_inches()
    return place.width * width if axis == "x" else place.height * height


def name_ticks(ax: Axes, names: Sequence[str], *, axis: str) -> None:
    """Put names at 0, 1, ...: turned where they are too wide, left out where too many."""
    room = inches(ax, axis) / len(names)
    line = 0.16  # inches that a line of text takes
    step = max(1, int(np.ceil(line / room)))
    at = range(0, len(names), step)
    getattr(ax, f"set_{axis}ticks")(at, [names[i] for i in at])
    widest = max(len(part) for name in names for part in name.split("\n"))
    if axis == "x" and 0.08 * (widest + 1) > room * step:  # inches a letter
        ax.tick_params("x", rotation=90)


def readable_on(color: Any) -> str:
    """Return "black" or "white", whichever has the larger contrast on a colour.

    WCAG 2.1, contrast ratio (L1 + 0.05) / (L2 + 0.05) of relative luminances: at least
    4.5 with one of the two, on every colour.
    """
    return "black" if luminance(color) > (1.05 * 0.05) ** 0.5 - 0.05 else "white"


def luminance(color: Any) -> float:
    """Return the relative luminance of an sRGB colour, 0 for black and 1 for white."""
    rgb = np.asarray(color[:3])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def to_axes_array(axes: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return given axes as an array of `shape`, or say what is needed."""
    array = np.asarray(axes, dtype=object)
    if array.shape != shape:
        raise ValueError(
            f"axes have shape {array.shape}, but {shape} are needed, "
            f"for example plt.subplots{shape if len(shape) > 1 else (1, *shape)}[1]."
        )
    return array
