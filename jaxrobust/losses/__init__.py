"""Losses that attacks maximise: (logits `[B, C]`, y) -> `[B]`.

A loss says what its `y` is (`takes`); for most, integer labels `[B]`. A large value is
good for the adversary. Training minimises the mean of one of them (`cross_entropy`).
Logits in half precision are taken to float32 first.
"""

from jaxrobust._core.kinds import (
    ANYTHING,
    LABELS,
    LOGITS,
    MULTI_HOT,
    PAIR,
    POSITIONS,
    TARGETS,
    VALUES,
)
from jaxrobust.losses.classification import (
    cross_entropy,
    dlr,
    dlr_targeted,
    kl,
    margin,
    margin_of_pair,
    negative_log_prob,
)
from jaxrobust.losses.expected import Expected, expected
from jaxrobust.losses.kinds import is_broken, takes
from jaxrobust.losses.outputs import (
    PerPosition,
    binary_cross_entropy,
    per_position,
    squared_error,
)
from jaxrobust.losses.targets import Targeted, targeted

__all__ = [
    "ANYTHING",
    "LABELS",
    "LOGITS",
    "MULTI_HOT",
    "PAIR",
    "POSITIONS",
    "TARGETS",
    "VALUES",
    "Expected",
    "PerPosition",
    "Targeted",
    "binary_cross_entropy",
    "cross_entropy",
    "dlr",
    "dlr_targeted",
    "expected",
    "is_broken",
    "kl",
    "margin",
    "margin_of_pair",
    "negative_log_prob",
    "per_position",
    "squared_error",
    "takes",
    "targeted",
]
