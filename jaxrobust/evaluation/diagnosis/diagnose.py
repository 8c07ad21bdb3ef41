"""Is this evaluation to be believed? Known signs of a failed attack, looked for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import losses
from jaxrobust._core import (
    batching,
    checks,
    label_checks,
    model_checks,
    programs,
    threat_rows,
)
from jaxrobust.attacks._model import any_tracer, as_model
from jaxrobust.evaluation.diagnosis import _local, _strength
from jaxrobust.evaluation.diagnosis.diagnosis import FAIL, PASS, WARN, Check, Diagnosis
from jaxrobust.types import Array, LogitsFn, Threat


def diagnose(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    threat: Threat,
    key: Array,
    num_steps: int = 20,
    num_queries: int = 200,
) -> Diagnosis:
    """Look for signs that a gradient attack fails where the model does not.

    Carlini et al. 2019, arXiv:1902.06705; Athalye et al. 2018, arXiv:1802.00420, section 3;
    Pintor et al. 2022, arXiv:2106.09947; Croce et al. 2020, arXiv:2003.01690. The program
    of the model is read, its outputs and gradients are measured at `x`, and attacks are
    compared that must be stronger than one another. A few hundred examples are enough.
    Nothing here proves robustness: a model that passes can be evaluated, one that fails is
    to be attacked as the advice says.

    Args:
      logits_fn: Pure function from inputs `[B, ...]` to logits `[B, C]`.
      x: Clean inputs `[B, ...]`.
      y: Labels `[B]`.
      threat: The threat model of the evaluation: `Linf`, `L2`, `L1` or a dataclass
        like them.
      key: A typed PRNG key.
      num_steps: Gradient steps of PGD; all attacks together take about 20 times as many
        gradients for each example.
      num_queries: Forward passes of the black-box search for each example.

    Returns:
      A `Diagnosis`: print it, or look at `diagnosis.flagged`.

    Raises:
      ValueError, TypeError: On misuse, with advice.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> x = jax.random.uniform(jax.random.key(0), (20, 4))
      >>> def defended(x):
      ...     return jnp.round(3 * x) @ jnp.eye(4)
      >>> diagnosis = diagnose(defended, x, defended(x).argmax(-1), num_steps=5,
      ...                      threat=jr.Linf(0.1), key=jax.random.key(1))
      >>> print(diagnosis["program"].verdict, diagnosis["program"].finding)
      fail no gradient reaches the logits: round
    """
    if any_tracer([x, y]):
        raise checks.traced_error("diagnose")
    checked = checks.check_key(key, "diagnose")
    assert checked is not None
    threat = threat_rows.as_threat(threat)
    x, y = checks.check_inputs(x, y, threat, losses.LABELS)
    if not len(x):
        raise ValueError("x holds no examples: there is nothing to diagnose.")
    model = as_model(logits_fn, x).tree
    if model is None:
        raise checks.traced_error("diagnose")
    logits, repeated = _call_twice(logits_fn, x)
    label_checks.check_range(y, logits.shape[1])
    is_correct = np.asarray(logits.argmax(-1) == y)
    program = _program_check(logits_fn, x)
    error = _gradient_error(model, x)
    if error is not None:
        findings = (program, error)
        accuracy = float(is_correct.mean())
        return Diagnosis(findings, accuracy, accuracy, len(x))
    keys = batching.per_example_keys(checked, len(x))
    found = jax.tree.map(np.asarray, _local.measure(model, x, y, threat, keys))
    runs = _strength.run(model, x, y, threat, keys, num_steps, num_queries)
    findings = (
        program,
        *_local.checks(found, repeated, is_correct),
        *_strength.checks(runs, is_correct, threat.mask is not None),
    )
    robust = _strength.robust_accuracy(runs, is_correct)
    return Diagnosis(findings, float(is_correct.mean()), robust, len(x))


def _call_twice(logits_fn: LogitsFn, x: Array) -> tuple[np.ndarray, float]:
    """Return the logits and how much a second call changes them, relatively.

    Outside of `jit`: a model that draws numbers on the host is frozen by compilation.
    """
    with model_checks.explain_model_errors(x):
        first, second = (np.asarray(logits_fn(x), np.float32) for _ in range(2))
    if first.ndim != 2 or first.shape[0] != len(x) or first.shape[1] < 2:
        raise ValueError(f"logits_fn returned shape {first.shape}; [B, C] is needed.")
    size = np.linalg.norm(np.nan_to_num(first), axis=-1)
    gap = np.linalg.norm(np.nan_to_num(first - second), axis=-1)
    return first, float(np.max(gap / np.where(size > 0, size, 1)))


def _program_check(logits_fn: LogitsFn, x: Array) -> Check:
    reach = programs.find_losses(logits_fn, x)
    names = ", ".join(sorted(reach.lost))
    verdict = PASS if not reach.lost else WARN
    finding = f"flat operations next to the gradient's way: {names or 'none'}"
    if not reach.is_live:
        verdict = FAIL
        finding = f"no gradient reaches the logits: {names or 'constant'}"
    elif reach.custom and not names:
        finding += f"; derivatives of their own: {', '.join(sorted(reach.custom))}"
    return Check(
        "program",
        verdict,
        float(len(reach.lost)),
        0.0,
        finding,
        "give these operations a derivative with jr.bpda, or use a black-box attack",
    )


def _gradient_error(model: Any, x: Array) -> Check | None:
    """Return a failed check if the model cannot be differentiated at all."""

    def total(x: Array) -> Array:
        return jnp.sum(model(x).astype(jnp.float32))

    try:
        jax.eval_shape(jax.grad(total), x)
    except Exception as error:
        return Check(
            "differentiable",
            FAIL,
            1.0,
            0.0,
            f"differentiation raises {type(error).__name__}: {str(error)[:80]}",
            "wrap the part that cannot be differentiated in jr.bpda",
        )
    return None
