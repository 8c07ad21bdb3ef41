"""Short texts of values: what was set, with functions by name and without addresses."""

import dataclasses
from typing import Any

import jax


def concise(value: Any) -> str:
    """Return the text of a dataclass with only the fields that differ from the default.

    Equal settings give equal texts, in another process too.

    Args:
      value: A dataclass instance; used as its `__repr__`.

    Example:
      >>> import jaxrobust as jr
      >>> print(jr.Restarts(jr.PGD(num_steps=40, loss=jr.losses.margin), 10))
      Restarts(PGD(num_steps=40, loss=margin), 10)
    """
    texts = []
    for field in dataclasses.fields(value):
        current = getattr(value, field.name)
        is_required = field.default is dataclasses.MISSING
        if is_required:
            texts.append(_text(current))
        elif current is not field.default and not _is_equal(current, field.default):
            texts.append(f"{field.name}={_text(current)}")
    return f"{type(value).__name__}({', '.join(texts)})"


def _is_equal(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and type(a) is type(b):  # its items may be arrays
        return len(a) == len(b) and all(map(_is_equal, a, b))
    return isinstance(a, int | float | str) and type(a) is type(b) and a == b


def _text(value: Any) -> str:
    if isinstance(value, jax.tree_util.Partial) and not value.args:
        return _text(value.func)
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return f"({', '.join(map(_text, value))})"
    if isinstance(value, tuple):  # an optax transformation: a pair of functions
        name = getattr(value[0], "__qualname__", type(value).__name__)
        return name.split(".")[0]
    if callable(value) and not dataclasses.is_dataclass(value):
        name = getattr(value, "__qualname__", type(value).__name__)
        return name.split(".<locals>")[0]
    return repr(value)
