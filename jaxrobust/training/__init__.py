"""Training: objectives for the outer minimisation, and an optax loop around them.

`fit` and the checkpoints need Flax and Orbax, which are imported when first used.
"""

import importlib
from typing import Any as _Any

from jaxrobust.training.adversarial import adversarial
from jaxrobust.training.alp import alp
from jaxrobust.training.averages import EMA, SWA
from jaxrobust.training.distilled import distilled
from jaxrobust.training.free import FreeState, free
from jaxrobust.training.gradalign import gradalign
from jaxrobust.training.gradient import AWP, SAM
from jaxrobust.training.hat import hat
from jaxrobust.training.ikl import ikl
from jaxrobust.training.inner import NFGSM, RandomTargets
from jaxrobust.training.mart import mart
from jaxrobust.training.mixture import mixture
from jaxrobust.training.monitor import CollapseWarning, Monitor
from jaxrobust.training.objectives import Objective
from jaxrobust.training.several import average_of, one_of, worst_of
from jaxrobust.training.smoothing import label_smoothing
from jaxrobust.training.standard import standard
from jaxrobust.training.stateful import stateful
from jaxrobust.training.trades import trades

# The loop's file is not called `fit`: importing it would hide the function.
_LAZY = {
    "Checkpoints": "checkpoint",
    "FitResult": "loop",
    "fit": "loop",
    "load_checkpoint": "checkpoint",
    "prepare_out": "checkpoint",
    "refresh_statistics": "statistics",
    "save_checkpoint": "checkpoint",
    "steps": "stepwise",
    "Validation": "validation",
}

__all__ = [
    "AWP",
    "EMA",
    "NFGSM",
    "SAM",
    "SWA",
    "Checkpoints",
    "CollapseWarning",
    "FitResult",
    "FreeState",
    "Monitor",
    "Objective",
    "RandomTargets",
    "Validation",
    "adversarial",
    "alp",
    "average_of",
    "distilled",
    "fit",
    "free",
    "gradalign",
    "hat",
    "ikl",
    "label_smoothing",
    "load_checkpoint",
    "mart",
    "mixture",
    "one_of",
    "prepare_out",
    "refresh_statistics",
    "save_checkpoint",
    "standard",
    "stateful",
    "steps",
    "trades",
    "worst_of",
]


def __getattr__(name: str) -> _Any:
    if name in _LAZY:
        module = importlib.import_module(f"jaxrobust.training.{_LAZY[name]}")
        return getattr(module, name)
    raise AttributeError(f"module 'jaxrobust.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
