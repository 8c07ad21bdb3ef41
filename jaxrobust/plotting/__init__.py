"""Pictures of attacks, evaluations and training, in one style.

Every function draws on the axes that it is given, or on a new figure, and returns the
axes; nothing is shown or saved. Matplotlib is imported here and nowhere else in the
package, when `jaxrobust.plotting` is first used.
"""

from jaxrobust.plotting.accuracy import accuracy_bars as accuracy_bars
from jaxrobust.plotting.accuracy import robustness_curve as robustness_curve
from jaxrobust.plotting.confusion import confusion as confusion
from jaxrobust.plotting.contour import contour as contour
from jaxrobust.plotting.gallery import gallery as gallery
from jaxrobust.plotting.style import COLORS as COLORS
from jaxrobust.plotting.style import STYLE as STYLE
from jaxrobust.plotting.style import use_style as use_style
from jaxrobust.plotting.surface import iterates as iterates
from jaxrobust.plotting.surface import loss_surface as loss_surface
from jaxrobust.plotting.training import training_curves as training_curves

__all__ = [
    "COLORS",
    "STYLE",
    "accuracy_bars",
    "confusion",
    "contour",
    "gallery",
    "iterates",
    "loss_surface",
    "robustness_curve",
    "training_curves",
    "use_style",
]
