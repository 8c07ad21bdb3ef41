"""Threats: the set around `x` that the adversary may choose from."""

from jaxrobust.threats.balls import (
    L1,
    L2,
    Linf,
    apply_mask,
    bounds_like,
    into_bounds,
    room,
)

__all__ = ["L1", "L2", "Linf", "apply_mask", "bounds_like", "into_bounds", "room"]
