"""From the user's call to the compiled attack: host checks, keys, compilation.

An attack has a pure method `run(logits_fn, x, y, threat, keys)`. This file turns a call
`attack(logits_fn, x, y, threat=..., key=...)` into it. Inside a
transformation (jit, vmap, grad, shard_map) it adds nothing but the keys.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxrobust._core import batching, checks, closure, model_checks, threat_rows
from jaxrobust._cpu.convolution import fast_convolutions
from jaxrobust.surrogates.expectation import Expectation
from jaxrobust.threats import narrow

# So many examples show whether a model returns probabilities; all would cost a forward
# pass, as much as a twentieth of PGD-10.
_FEW = 8

_NUMERIC = (jax.Array, np.ndarray, np.generic, int, float)


def as_pytree(logits_fn: Callable, x: jax.Array) -> Callable | None:
    """Return `logits_fn` as a pytree for `jax.jit`, or None inside a transformation.

    A callable pytree (`Partial`, an Equinox or NNX module) is one already. The caller keeps
    any other function alive for as long as it uses the result. An expectation stays one,
    whatever it is made of.
    """
    if not isinstance(logits_fn, Expectation):
        return _as_pytree(logits_fn, x)
    if any_tracer([logits_fn.key]):
        return None
    keys = jax.ShapeDtypeStruct(x.shape[:1], logits_fn.key.dtype)
    model_fn = _as_pytree(logits_fn.model_fn, x, keys)
    if model_fn is None:
        return None
    return dataclasses.replace(logits_fn, model_fn=model_fn)


def _as_pytree(function: Callable, x: Any, *keys: Any) -> Callable | None:
    leaves = jax.tree.leaves(function)
    # An Equinox module may have functions among its leaves: then it is a closure.
    if all(isinstance(leaf, _NUMERIC) for leaf in leaves):
        return None if any_tracer(leaves) else function
    with model_checks.explain_model_errors(x):
        key, arrays = closure.hoist(function, x, *keys)
    return None if any_tracer(arrays) else jax.tree_util.Partial(key, arrays)


@jax.jit
def _run(attack, logits_fn, x, y, threat, keys):
    return _run_in_type(attack, fast_convolutions(logits_fn), x, y, threat, keys)


def _run_in_type(attack, logits_fn, x, y, threat, keys) -> jax.Array:
    """Return what the attack finds, in the type of `x`; half precision is iterated wide."""
    dtype = x.dtype
    if narrow.is_narrow(dtype):
        logits_fn, threat = rounded(logits_fn, dtype), narrow.threat_in(threat, dtype)
        x = x.astype(np.float32)
    x_adv = attack.run(logits_fn, x, y, threat, keys)
    return jax.lax.stop_gradient(x_adv).astype(dtype)


def rounded(logits_fn: Callable, dtype: Any) -> Callable:
    """Return a model of half precision for points in float32."""
    if isinstance(logits_fn, Expectation):
        model_fn = narrow.Rounding(logits_fn.model_fn, dtype)
        return dataclasses.replace(logits_fn, model_fn=model_fn)
    return narrow.Rounding(logits_fn, dtype)


@jax.jit
def _logits(logits_fn, x):
    return logits_fn(x)


def call(attack: Any, logits_fn: Callable, x, y, *, threat, key=None) -> jax.Array:
    """Check, derive per-example keys, run; the shared body of every `__call__`."""
    key = check_key(attack, key)
    model_checks.check_callable(logits_fn)
    threat, takes = threat_rows.as_threat(threat), attack.takes
    checks.check_distance(attack, threat)
    is_traced = any_tracer(jax.tree.leaves((attack, x, y, threat, key)))
    if is_traced:
        x, y = jax.tree.map(jax.numpy.asarray, (x, y))
        x, y = checks.check_shapes(x, y, threat, takes)
    else:
        # Nothing of these is traced, though the model may be, inside of `jit`.
        with jax.ensure_compile_time_eval():
            x, y = checks.check_inputs(x, y, threat, takes)
    checks.check_key_shape(key, x.shape[0])
    keys = None if key is None else batching.per_example_keys(key, x.shape[0])
    compiled_fn = None if is_traced else as_pytree(logits_fn, x)
    check_model(attack, compiled_fn or logits_fn, x, y, threat)
    if compiled_fn is None:
        # Under `jax.grad` nothing is differentiated in passing: not all of it could be.
        attack, x, y, threat = jax.lax.stop_gradient((attack, x, y, threat))
        logits_fn = fast_convolutions(logits_fn)
        return _run_in_type(attack, logits_fn, x, y, threat, keys)
    with model_checks.explain_model_errors():
        # What is spread over devices cannot be cut anywhere.
        with jax.ensure_compile_time_eval():
            few = x if len(x.devices()) > 1 else x[:_FEW]
            logits = _logits(compiled_fn, few)
            model_checks.check_not_probabilities(logits)
        return _run(attack, compiled_fn, x, y, threat, keys)


def check_key(attack: Any, key: Any) -> jax.Array | None:
    """Return a typed key, or raise where the attack needs one."""
    drawing = attack if attack.needs_key else None
    return checks.check_key(key, drawing, attack.instead_of_a_key)


def check_model(attack: Any, logits_fn: Callable, x: Any, y: Any, threat: Any) -> None:
    """Check the shapes of the model's outputs and of every loss; evaluates nothing."""
    with model_checks.explain_model_errors(x):
        leaves = jax.tree.leaves(logits_fn)
        is_tree = all(isinstance(leaf, _NUMERIC) for leaf in leaves)
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        logits = jax.eval_shape(
            *((_logits, logits_fn) if is_tree else (lambda x: logits_fn(x),)), shape
        )
    model_checks.check_logits(logits, y, attack.takes)
    for loss, given in attack.losses_with_y(y, threat):
        model_checks.check_loss_values(loss, logits, given)


def any_tracer(leaves) -> bool:
    """Whether one of these is inside a transformation."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
