"""Recipes of `experiments.train`: a short file each, named after what it trains.

A recipe is a module with

    DATASET     the name of the data, as of `jr.data.load`
    EPS         the radius of the l_inf ball
    RECIPE      network, optimiser, epochs: a `Recipe`, each value of which is an option
    objective   (threat, num_steps) -> the objective, for the schedules over a whole run
    GRADIENT    optional, how it is differentiated: `jr.training.AWP(0.005)`, say

and a docstring that says its command, its time and what it is expected to give.
"""

import importlib
import pkgutil
from types import ModuleType

NAMES: tuple[str, ...] = tuple(sorted(m.name for m in pkgutil.iter_modules(__path__)))


def load(name: str) -> ModuleType:
    """Return the module of a recipe.

    Raises:
      ValueError: If there is none of this name.
    """
    if name not in NAMES:
        raise ValueError(f"there is no recipe {name!r}: take one of {', '.join(NAMES)}")
    return importlib.import_module(f"experiments.recipes.{name}")
