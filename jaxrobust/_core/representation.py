"""Short texts of values: what was set, with functions by name and without addresses."""

import dataclasses
import zlib
from typing import Any

import jax
import numpy as np

# What a float that JAX computes with can tell apart.
_FLOAT32 = np.float32


def concise(value: Any) -> str:
    """Return the text of a dataclass with only the fields that differ from the default.

    Equal settings give equal texts, in another process too, and different arrays give
    different texts: state files and checkpoints compare settings by them.

    Args:
      value: A dataclass instance; used as its `__repr__`.

    Example:
      >>> import jaxrobust as jr
      >>> print(jr.Restarts(jr.PGD(num_steps=40, loss=jr.losses.margin), 10))
      Restarts(PGD(num_steps=40, loss=margin), 10)
      >>> print(jr.Linf(8 / 255, mask=np.ones((28, 28, 1), bool)))
      Linf(8/255, mask=<bool[28, 28, 1] crc32 0c26c44b>)
    """
    texts = []
    for field in dataclasses.fields(value):
        current = getattr(value, field.name)
        is_required = field.default is dataclasses.MISSING
        if is_required:
            texts.append(text(current))
        elif current is not field.default and not _is_equal(current, field.default):
            texts.append(f"{field.name}={text(current)}")
    return f"{type(value).__name__}({', '.join(texts)})"


def _is_equal(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and type(a) is type(b):  # its items may be arrays
        return len(a) == len(b) and all(map(_is_equal, a, b))
    return isinstance(a, int | float | str) and type(a) is type(b) and a == b


def text(value: Any) -> str:
    """Return a short text of any setting."""
    if isinstance(value, jax.tree_util.Partial) and not value.args:
        return text(value.func)
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return f"({', '.join(map(text, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, tuple):  # an optax transformation: a pair of functions
        name = getattr(value[0], "__qualname__", type(value).__name__)
        return name.split(".")[0]
    if isinstance(value, float | np.ndarray | np.generic | jax.Array):
        return _number(value) if isinstance(value, float) else _array(value)
    if callable(value) and not dataclasses.is_dataclass(value):
        name = getattr(value, "__qualname__", type(value).__name__)
        return name.split(".<locals>")[0]
    return repr(value)


def _number(value: Any) -> str:
    """Return a float as the papers write it: 0.1, and 8/255 where it is that in float32."""
    text = str(value)
    numerator = round(255 * float(value)) if 0 < value < 1 else 0
    is_fraction = 0 < numerator < 255 and _FLOAT32(value) == _FLOAT32(numerator / 255)
    # 0.2 is 51/255 too, and 1/3 is 85/255: neither is meant so.
    is_meant = numerator % 85 and len(text) > len("0.1234")
    return f"{numerator}/255" if is_fraction and is_meant else text


def _array(value: Any) -> str:
    """Return type, shape and checksum of an array; its number, if it is a single one."""
    kind = f"{value.dtype}{list(np.shape(value))}"
    is_known = not isinstance(value, jax.core.Tracer) and (
        not isinstance(value, jax.Array) or value.is_fully_addressable
    )
    if not is_known or jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
        return f"<{kind}>"
    array = np.asarray(value)
    if array.ndim == 0:
        # Of float32 the shortest text that gives it back: 0.1, not 0.10000000149011612.
        number = array[()] if array.dtype == np.float32 else array.item()
        return _number(number) if isinstance(number, float | _FLOAT32) else str(number)
    return f"<{kind} crc32 {zlib.crc32(array.tobytes()):08x}>"
