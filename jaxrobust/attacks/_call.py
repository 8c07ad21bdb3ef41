"""From the user's call to the compiled attack: host checks, keys, compilation.

An attack has a pure method `run(logits_fn, x, y, threat, keys)`. This file turns a call
`attack(logits_fn, x, y, threat=..., key=...)` into it. Inside a
transformation (jit, vmap, grad, shard_map) it adds nothing but the keys.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxrobust._core import batching, checks, model_checks, threat_rows
from jaxrobust._cpu.convolution import fast_convolutions
from jaxrobust.attacks._model import (
    any_tracer,
    as_model,
    check_outputs,
    logits,
    rounded,
)
from jaxrobust.threats import narrow

# So many examples show whether a model returns probabilities; all would cost a forward
# pass, as much as a twentieth of PGD-10.
_FEW = 8


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
    model = as_model(logits_fn, x, is_inside=is_traced)
    check_outputs(attack, model.fn, x, y, threat)
    if model.tree is None:
        # Under `jax.grad` nothing is differentiated in passing: not all of it could be.
        attack, x, y, threat = jax.lax.stop_gradient((attack, x, y, threat))
        logits_fn = fast_convolutions(logits_fn)
        return _run_in_type(attack, logits_fn, x, y, threat, keys)
    with model_checks.explain_model_errors():
        # What is spread over devices cannot be cut anywhere.
        with jax.ensure_compile_time_eval():
            few = x if len(x.devices()) > 1 else x[:_FEW]
            model_checks.check_not_probabilities(logits(model.tree, few))
        return _run(attack, model.tree, x, y, threat, keys)


def check_key(attack: Any, key: Any) -> jax.Array | None:
    """Return a typed key, or raise where the attack needs one."""
    drawing = attack if attack.needs_key else None
    return checks.check_key(key, drawing, attack.instead_of_a_key)
