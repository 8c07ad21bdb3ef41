"""jaxrobust: adversarial robustness as two nested optimisation problems, in JAX.

  inner   max over delta in Delta of loss(f(x + delta), y)    an attack
  outer   min over f of the mean of the inner maximum         adversarial training

Importing it costs jax and optax. `jaxrobust.models` (Flax) and `jaxrobust.data` are loaded
when first used.
"""

import importlib as _importlib
from importlib import metadata as _metadata
from typing import Any as _Any

from jaxrobust import certify, evaluation, losses, training, types
from jaxrobust._cpu.convolution import fast_convolutions, plain_convolutions
from jaxrobust.attacks import (
    APGD,
    FAB,
    FGSM,
    ODI,
    PGD,
    SPSA,
    AutoAttack,
    Restarts,
    Square,
    Targets,
    WorstOf,
    apgd,
    autoattack,
    eot,
    fab,
    fgsm,
    pgd,
    randomized,
    spsa,
    square,
)
from jaxrobust.evaluation import Diagnosis, Report, evaluate
from jaxrobust.evaluation.diagnosis import diagnose
from jaxrobust.surrogates import bpda, transforms
from jaxrobust.threats import L1, L2, Linf

try:
    __version__ = _metadata.version("jaxrobust")
except _metadata.PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0.0.0+source"

_LAZY = ("data", "models", "plotting")

__all__ = [
    "APGD",
    "FAB",
    "FGSM",
    "L1",
    "L2",
    "ODI",
    "PGD",
    "SPSA",
    "AutoAttack",
    "Diagnosis",
    "Linf",
    "Report",
    "Restarts",
    "Square",
    "Targets",
    "WorstOf",
    "apgd",
    "autoattack",
    "bpda",
    "certify",
    "data",
    "diagnose",
    "eot",
    "evaluate",
    "evaluation",
    "fab",
    "fast_convolutions",
    "fgsm",
    "losses",
    "models",
    "pgd",
    "plain_convolutions",
    "plotting",
    "randomized",
    "spsa",
    "square",
    "training",
    "transforms",
    "types",
]


def __getattr__(name: str) -> _Any:
    if name in _LAZY:
        return _importlib.import_module(f"jaxrobust.{name}")
    raise AttributeError(f"module 'jaxrobust' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
