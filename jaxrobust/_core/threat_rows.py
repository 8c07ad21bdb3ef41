"""Threats of any class at the door: what they must have, which shapes fit, whose rows.

`eps`, `bounds` and `mask` are the same for all examples or one for each. The rank tells:
one example of `x [B, ...]` has one axis less than a batch.
"""

import dataclasses
from typing import Any, cast

import jax
import numpy as np

from jaxrobust._core import pytree

_MEMBERS = ("eps", "bounds", "mask", "order")
_MEMBERS += ("project", "steepest", "sample", "distance", "with_eps")


def as_threat(threat: Any) -> Any:
    """Return the threat as a pytree, or raise the error that says what it lacks."""
    missing = [name for name in _MEMBERS if not hasattr(threat, name)]
    if isinstance(threat, type) or len(missing) == len(_MEMBERS):
        raise TypeError(
            f"threat={threat!r} is not a threat: pass the ball and its radius, such as "
            "jr.Linf(8 / 255)."
        )
    if missing:
        raise TypeError(
            f"threat={threat!r} lacks {', '.join(missing)}: a threat has all that "
            "jaxrobust.types.Threat lists."
        )
    is_leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(threat))
    return Foreign(_Same(threat)) if is_leaf else threat


class _Same:
    """A value that equals itself alone, whatever its class says: a key of compilations."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class Foreign:
    """A threat that is not a pytree: its numbers are part of the program."""

    held: _Same = pytree.static()

    def __repr__(self) -> str:
        return repr(self.held.value)

    eps = property(lambda self: self.held.value.eps)
    bounds = property(lambda self: self.held.value.bounds)
    mask = property(lambda self: self.held.value.mask)
    order = property(lambda self: self.held.value.order)
    project = property(lambda self: self.held.value.project)
    steepest = property(lambda self: self.held.value.steepest)
    sample = property(lambda self: self.held.value.sample)
    distance = property(lambda self: self.held.value.distance)

    def with_eps(self, eps: Any) -> Any:
        """Return the same threat with another radius."""
        return as_threat(self.held.value.with_eps(eps))


def name_of(threat: Any) -> str:
    """Return the name of the threat's class."""
    value = threat.held.value if isinstance(threat, Foreign) else threat
    return type(value).__name__


def is_per_example(value: Any, ndim: int) -> bool:
    """Whether bounds or a mask have a row for each example of a batch of rank `ndim`."""
    return value is not None and np.ndim(value) == ndim and np.shape(value)[0] != 1


def rows_of(threat: Any, rows: np.ndarray, ndim: int, put: Any = None) -> Any:
    """Return the threat of these examples.

    Args:
      threat: The threat of all N examples.
      rows: Numbers of examples.
      ndim: Rank of the batch `x [N, ...]`.
      put: What is done to each chosen array, such as placing it on devices.
    """

    def choose(value: Any) -> Any:
        if not is_per_example(value, ndim):
            return value
        chosen = np.asarray(value)[rows]
        return chosen if put is None else put(chosen)

    changes: dict[str, Any] = {}
    if np.ndim(threat.eps) == 1:
        eps = np.asarray(threat.eps)[rows]
        changes["eps"] = eps if put is None else put(eps)
    if is_per_example(threat.mask, ndim):
        changes["mask"] = choose(threat.mask)
    bounds = threat.bounds or ()
    if any(is_per_example(bound, ndim) for bound in bounds):
        changes["bounds"] = tuple(map(choose, bounds))
    if not changes:
        return threat
    if changes.keys() == {"eps"}:
        return threat.with_eps(changes["eps"])
    if not dataclasses.is_dataclass(threat) or isinstance(threat, Foreign):
        raise TypeError(
            f"threat={threat!r} has bounds or a mask for each example, and rows can be "
            "chosen of dataclasses that are pytrees only: register it, or evaluate example "
            "by example."
        )
    return dataclasses.replace(cast(Any, threat), **changes)


def check_shapes(threat: Any, shape: tuple[int, ...]) -> None:
    """Raise where `eps`, `bounds` or `mask` do not fit a batch of this shape."""
    if np.shape(threat.eps) not in ((), shape[:1]):
        raise ValueError(
            f"eps has shape {np.shape(threat.eps)}; one radius, or one for each of the "
            f"{shape[0]} examples is needed."
        )
    bounds = threat.bounds
    lower, upper = (None, None) if bounds is None else bounds
    named = {"mask": threat.mask, "the lower bound": lower, "the upper bound": upper}
    for name, value in named.items():
        given = () if value is None else np.shape(value)
        if not (fits(given, shape[1:]) or _broadcasts(given, shape)):
            example = ", ".join(map(str, shape[1:]))
            raise ValueError(
                f"{name} has shape {given}, the batch {shape}: a scalar fits, "
                f"[{shape[-1]}] along the last axis, the shape of one example "
                f"({example}) where any axis may be 1, or a row for each example "
                f"({shape[0]}, {example}). Write 1 for the axes that share a value, as "
                "mask[..., None] for pixels whose channels share one."
            )


def fits(given: tuple[int, ...], example: tuple[int, ...]) -> bool:
    """Whether a shape means one thing for an example; what merely broadcasts does not.

    A scalar does, one value for each channel (the last axis), and the shape of the example
    itself, in which any axis may be 1.
    """
    is_scalar_or_channels = given in ((), (1,), example[-1:])
    return is_scalar_or_channels or _broadcasts(given, example)


def _broadcasts(given: tuple[int, ...], full: tuple[int, ...]) -> bool:
    """Whether each axis is that of `full`, or 1."""
    is_long = len(given) == len(full)
    return is_long and all(a in (1, b) for a, b in zip(given, full, strict=True))
