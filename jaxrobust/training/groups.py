"""The short forms of what `fit` takes in groups, resolved in one place."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypedDict, TypeVar

from jaxrobust._core import arguments
from jaxrobust.training import _checks
from jaxrobust.training.averages import EMA, SWA
from jaxrobust.training.checkpoint import Checkpoints
from jaxrobust.training.validation import NOTHING, Validation
from jaxrobust.types import Attack

P = ParamSpec("P")
R = TypeVar("R")


class Short(TypedDict, total=False):
    """Short forms of the groups of `fit`; beside its group none may be given.

    Of `Validation(x, y, attack=, threat=, batch_size=)`: `validation_attack`, `threat`,
    `validation_batch_size`, beside `validation=(x, y)`. Of `Checkpoints(directory, every=,
    metadata=, resume=)`: `checkpoint_every`, `metadata`, `resume`, beside `out=directory`.
    `ema_decay=d` is `average=EMA(d)`.
    """

    validation_attack: Attack | None
    threat: Any
    validation_batch_size: int | None
    checkpoint_every: int | None
    metadata: Mapping[str, Any] | None
    resume: bool
    ema_decay: float | None


def explained(function: Callable[P, R]) -> Callable[P, R]:
    """Return `fit`, which says what is meant by an argument that it does not have.

    Python itself would say of a misspelt `num_epoch=` only that num_epochs is missing.
    """
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    names += Short.__annotations__

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in names:
                raise TypeError(arguments.message(function.__name__, name, names))
        return function(*args, **kwargs)

    return call


def as_validation(validation: Any, short: Short) -> Validation:
    """Return what the model is scored on, with the attack on it."""
    if isinstance(validation, Validation):
        _refuse(short, f"validation={validation!r}", "Validation(")
        if validation.x is None:
            raise TypeError(
                "Validation(None, ...) has no examples: pass Validation(x_val, y_val), or "
                "leave validation away."
            )
        return validation
    x, y = _pair(validation)
    attack, threat = short.get("validation_attack"), short.get("threat")
    _checks.check_validation("validation_attack", x, attack, threat)
    batch_size = short.get("validation_batch_size") or None
    return Validation(x, y, attack=attack, threat=threat, batch_size=batch_size)


def as_checkpoints(out: Any, short: Short) -> Checkpoints:
    """Return where and how often the run is saved."""
    if isinstance(out, Checkpoints):
        _refuse(short, f"out={out!r}", "Checkpoints(")
        return out
    return Checkpoints(
        out,
        every=short.get("checkpoint_every"),
        metadata=short.get("metadata"),
        resume=short.get("resume", True),
    )


def as_average(average: Any, short: Short) -> EMA | SWA | None:
    """Return the average of the weights that is taken."""
    if not isinstance(average, EMA | SWA | None):
        raise TypeError(
            f"average={average!r} is no average: pass jr.training.SWA() or "
            "jr.training.EMA(0.999)."
        )
    if average is not None:
        _refuse(short, f"average={average!r}", "average")
        return average
    decay = short.get("ema_decay")
    if decay is None:
        return None
    if not 0 < decay < 1:
        raise ValueError(f"ema_decay is {decay}; it must lie in (0, 1), or be None.")
    return EMA(decay)


_LONG = {
    "validation_attack": "Validation(attack=...)",
    "threat": "Validation(threat=...)",
    "validation_batch_size": "Validation(batch_size=...)",
    "checkpoint_every": "Checkpoints(every=...)",
    "metadata": "Checkpoints(metadata=...)",
    "resume": "Checkpoints(resume=...)",
    "ema_decay": "average=EMA(...)",
}


def _refuse(short: Short, given: str, group: str) -> None:
    """Raise where a short form of a group is given beside the group."""
    for name, value in short.items():
        if value is not None and _LONG[name].startswith(group):
            raise ValueError(
                f"{name}={value!r} and {given} are both given: {name} is the short form of "
                f"{_LONG[name]}, keep that and leave {name} away."
            )


def _pair(validation: Any) -> tuple[Any, Any]:
    """Return inputs and labels; None, None where there is nothing to validate on."""
    if validation is None:
        return NOTHING.x, NOTHING.y
    if not (isinstance(validation, tuple | list) and len(validation) == 2):
        raise TypeError(
            f"validation is a {type(validation).__name__}; a pair of inputs and labels is "
            "needed, validation=(x_val, y_val), or Validation(x_val, y_val, attack=...)."
        )
    return validation[0], validation[1]
