"""Misuse is caught here, on the host, before anything is compiled.

Each message says what was given, what is needed and what to do.
"""

import math
import os
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust._core import batching, label_checks, threat_rows

_PACKAGE = os.path.dirname(os.path.dirname(__file__))


def check_loss(loss: Any) -> None:
    """Raise where something else was passed as a loss."""
    if not callable(loss):
        raise TypeError(
            f"loss={loss!r} is not a function (logits, y) -> [B]: pass one such as "
            "jr.losses.dlr, not its name."
        )


def check_number(
    value: Any,
    name: str,
    needed: str = "a finite number of at least 0",
    is_valid: Callable[[float], bool] = lambda value: 0 <= value < math.inf,
) -> None:
    """Raise where a setting is no such number; a traced one cannot be seen and passes."""
    if isinstance(value, jax.core.Tracer):
        return
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        kinds = jnp.integer, jnp.floating
        is_number = any(jnp.issubdtype(value.dtype, kind) for kind in kinds)
    else:  # `beta=True` is a mistake
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or np.ndim(value) or not is_valid(float(value)):
        raise ValueError(f"{name}={value!r}: {needed} is needed.")


def check_list(values: Any, name: str, instead: str) -> None:
    """Raise where a single value was passed in the place of a list."""
    if not isinstance(values, list | tuple):
        raise TypeError(f"{name}={values!r}: a list of {name} is needed; {instead}.")


def check_attack(attack: Any) -> None:
    """Raise where something else was passed as an attack."""
    if isinstance(attack, types.FunctionType) and attack.__module__ in (
        "jaxrobust.attacks.functions",
        "jaxrobust.attacks.autoattack",
    ):
        raise TypeError(
            f"attack={attack.__name__} is a function of the library; what it makes, or "
            "its value, is needed: jr.autoattack(), jr.PGD(num_steps=20)."
        )
    if isinstance(attack, type) or not callable(attack):
        raise TypeError(
            f"attack={attack!r} is not an attack: pass one such as jr.PGD(num_steps=20). "
            "What it may do is said by threat=jr.Linf(8 / 255)."
        )


def traced_error(name: str) -> TypeError:
    """Return the error of a function that cannot be transformed."""
    return TypeError(
        f"{name} looks at values, and is not for jit, vmap or grad: call it outside, or "
        "use the attack itself, attack(logits_fn, x, y, threat=threat, key=key)."
    )


def check_key(key: Any, drawing: Any = None, instead: str = "") -> jax.Array | None:
    """Return a typed key; raise where there is none, and `drawing` needs one."""
    if key is None:
        if drawing is not None:
            raise ValueError(
                f"{drawing} draws random numbers and needs a key: pass "
                f"key=jax.random.key(0){instead}."
            )
        return None
    return typed_key(key)


def typed_key(key: Any) -> jax.Array:
    """Return a key, typed or of the older kind (uint32), as a typed one."""
    if batching.is_keys(key):
        return key
    is_raw = isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32
    if not is_raw:
        raise TypeError(
            f"key={key!r} is not a PRNG key: pass key=jax.random.key(seed)."
        )
    return jax.random.wrap_key_data(jnp.asarray(key))


def check_key_shape(key: jax.Array | None, num_examples: int) -> None:
    """Raise unless there is one key, or one for each example."""
    if key is not None and key.shape not in ((), (num_examples,)):
        raise ValueError(
            f"key has shape {key.shape}; one key or one for each of the {num_examples} "
            "examples is needed: pass jax.random.key(seed), or "
            f"jax.random.split(key, {num_examples})."
        )


def check_shapes(x: Any, y: Any, threat: Any, takes: str) -> tuple[Any, Any]:
    """Return labels in int32 after checking what shapes and types tell, in `jit` too."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"x is of type {x.dtype}, shape {x.shape}; attacks need gradients and so "
            "floating-point inputs: divide images of integers by their largest possible "
            "value, x.astype('float32') / 255, or exchange x and y if these are labels."
        )
    if x.ndim < 2:
        raise ValueError(
            f"x has shape {x.shape}; a batch [B, ...] is needed: for one example pass "
            "x[None] and y[None]."
        )
    threat_rows.check_shapes(threat, x.shape)
    return x, label_checks.check(y, x.shape[0], takes)


def check_inputs(
    x: Any, y: Any, threat: Any, takes: str, xp: Any = jnp
) -> tuple[Any, Any]:
    """Return `x` and `y` as arrays after checking everything that can be seen in them.

    Args:
      x: Clean inputs.
      y: What the loss takes.
      threat: The threat.
      takes: What that is, see `jaxrobust.losses`.
      xp: Whose arrays: NumPy's stay on the host.
    """
    x = xp.asarray(x)
    x = x.astype(jax.dtypes.canonicalize_dtype(x.dtype))
    y = tuple(map(xp.asarray, y)) if isinstance(y, tuple) else xp.asarray(y)
    x, y = check_shapes(x, y, threat, takes)
    values = np.asarray(x.astype(np.float32) if x.dtype.itemsize < 4 else x)
    if not np.all(np.isfinite(values)):
        bad = int(np.sum(~np.isfinite(values.reshape(len(values), -1)).all(axis=1)))
        raise ValueError(
            f"x holds NaN or infinite values in {bad} of {len(values)} examples: remove "
            "or repair these first."
        )
    if values.size:
        advice = "Put the normalisation inside logits_fn and pass data in [0, 1]"
        check_bounds("x", values, values, threat, advice)
        check_eps(threat, x.shape[1:])
    return x, y


def check_bounds(
    name: str, low: np.ndarray, high: np.ndarray, threat: Any, advice: str
) -> None:
    """Raise where data leave the bounds of the threat.

    Args:
      name: What the data are called.
      low: Values of which none may be below the lower bound.
      high: Values of which none may be above the upper bound.
      threat: The threat.
      advice: What else could be done than to change the bounds.
    """
    if threat.bounds is None:
        return
    lower, upper = (np.asarray(bound, low.dtype) for bound in threat.bounds)
    # One part in a million, of the bound or of what it bounds: the rounding of a
    # normalisation that was undone. Of 255 at most: a distant bound excuses nothing.
    extent = np.minimum(upper - lower, 255)
    below, above = (
        1e-6 * np.maximum(np.where(np.isfinite(bound), np.abs(bound), 0), extent)
        for bound in (lower, upper)
    )
    if np.any(low < lower - below) or np.any(high > upper + above):
        raise ValueError(
            f"{name} has values in [{low.min():.4g}, {high.max():.4g}], outside the "
            f"bounds {threat.bounds} of the threat. {advice}, or say what the bounds are: "
            f"{type(threat).__name__}(eps, bounds=(lower, upper)), or bounds=None."
        )


def check_eps(threat: Any, shape: tuple[int, ...]) -> None:
    """Warn where eps is so large that everything inside the bounds is allowed.

    Args:
      threat: The threat.
      shape: Shape of one example.
    """
    if threat.bounds is None or not np.size(threat.eps):
        return
    lower, upper = (np.asarray(bound, np.float32) for bound in threat.bounds)
    eps = np.max(threat.eps)
    # No norm of the difference of two inputs is smaller than its largest entry.
    most = np.max(upper - lower)
    if (
        np.isinf(eps)
        or eps <= most * (1 + 1e-6)
        or max(lower.ndim, upper.ndim) > len(shape)
    ):
        return
    corners = [jnp.broadcast_to(bound, shape)[None] for bound in (upper, lower)]
    farthest = float(threat.distance(*corners)[0])
    if eps > farthest * (1 + 1e-6):
        warn_user(
            f"eps={eps:.4g}, but no two inputs inside the bounds are further apart than "
            f"{farthest:.4g}: everything is allowed. Images in [0, 1] take 8 / 255, not 8."
        )


def check_distance(attack: Any, threat: Any) -> None:
    """Raise where an infinite eps would be the length of a step."""
    if attack.allows_any_distance or isinstance(threat.eps, jax.core.Tracer):
        return
    if not np.all(np.isfinite(threat.eps)):
        raise ValueError(
            f"{attack!r} moves in units of eps, which is infinite in threat={threat!r}: "
            "give a radius, or an attack that looks for the nearest point, such as "
            "jr.FAB()."
        )


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called the library."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
