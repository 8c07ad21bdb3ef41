"""Evaluate a classifier under an attack, in batches of one compiled shape."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import _batch, _checks, losses
from jaxrobust.attacks._call import as_pytree
from jaxrobust.evaluation.report import Report
from jaxrobust.types import Array, Attack, LogitsFn, Threat


def evaluate(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    attack: Attack,
    threat: Threat,
    key: Array | None = None,
    target: Any = None,
    batch_size: int = 500,
    on_batch: Callable[[int, int], None] | None = None,
) -> Report:
    """Attack every example and report clean and robust accuracy.

    Carlini et al. 2019, arXiv:1902.06705: accuracy is recomputed on the returned points and
    every point is audited. Example i draws from `fold_in(key, i)`, so the batch size
    changes nothing but speed and memory.

    Args:
      logits_fn: Pure function from inputs `[B, ...]` to logits `[B, C]`.
      x: Clean inputs `[N, ...]`.
      y: True labels `[N]`.
      attack: Any attack.
      threat: What it may do.
      key: One typed PRNG key; needed by attacks that draw random numbers.
      target: What the attack's loss takes instead of `y` (targets of a targeted attack).
      batch_size: Examples for each compiled call; the last batch is padded.
      on_batch: Called with (done, total) after each batch, for a progress bar.

    Returns:
      A `Report`; print it, or `report.save(directory)`.

    Raises:
      ValueError, TypeError: On misuse, with advice.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> x, y = jnp.array([[0.2, 0.6], [0.45, 0.55]]), jnp.array([1, 1])
      >>> report = evaluate(lambda x: x, x, y, attack=jr.FGSM(), threat=jr.Linf(0.1))
      >>> print(report.clean_accuracy, report.robust_accuracy)
      1.0 0.5
    """
    key = _checks.check_key(attack, key)
    x, y = _checks.check_inputs(x, y, threat)
    if x.shape[0] == 0:
        raise ValueError("x holds no examples: there is nothing to evaluate.")
    if y.ndim != 1:
        raise ValueError(
            f"y has shape {y.shape}; accuracy needs labels [N]. What the attack's loss "
            "takes instead of labels is passed as target=."
        )
    target = y if target is None else jax.tree.map(jnp.asarray, target)
    _checks.check_key_shape(key, x.shape[0])
    keys = None if key is None else _batch.per_example_keys(key, x.shape[0])
    batch_size = min(batch_size, x.shape[0])
    logits_fn = as_pytree(logits_fn, x[:batch_size]) or logits_fn
    attack = _batch.as_pytree(attack)
    _check_model(logits_fn, x[:batch_size], y, target)
    # A scalar radius stays as it is, one for each example is cut into batches.
    eps = jnp.broadcast_to(threat.eps, (x.shape[0],)) if jnp.ndim(threat.eps) else None
    parts = []
    for rows, count in _batches(x.shape[0], batch_size):
        batch = jax.tree.map(lambda a, rows=rows: a[rows], (x, y, target, keys))
        part = (
            threat
            if eps is None
            else dataclasses.replace(cast(Any, threat), eps=eps[rows])
        )
        result = _attack_batch(attack, logits_fn, part, *batch)
        parts.append(jax.tree.map(lambda a, n=count: np.asarray(a[:n]), result))
        if on_batch is not None:
            on_batch(int(rows[count - 1]) + 1, x.shape[0])
    merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Report(
        y=np.asarray(y),
        num_classes=merged.pop("num_classes").shape[1],
        cost=_total_cost(attack, x.shape[0]),
        audit=_audit(merged["x_adv"], np.asarray(x), merged["distance"], threat),
        settings=_settings(attack, threat, batch_size),
        **merged,
    )


@jax.jit
def _attack_batch(attack, logits_fn, threat, x, y, target, keys) -> dict[str, Array]:
    x_adv = attack(logits_fn, x, target, threat=threat, key=keys)
    logits, logits_adv = (logits_fn(v).astype(jnp.float32) for v in (x, x_adv))
    return {
        "predicted": jnp.argmax(logits, -1),
        "predicted_adv": jnp.argmax(logits_adv, -1),
        "confidence": jnp.max(jax.nn.softmax(logits), -1),
        "confidence_adv": jnp.max(jax.nn.softmax(logits_adv), -1),
        "loss": losses.cross_entropy(logits, y),
        "loss_adv": losses.cross_entropy(logits_adv, y),
        "distance": threat.distance(x_adv, x),
        "x_adv": x_adv,
        "num_classes": jnp.zeros((x.shape[0], logits.shape[1]), jnp.int8),
    }


def _batches(num_examples: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield row numbers and how many of them count; the last batch repeats its last."""
    for start in range(0, num_examples, batch_size):
        rows = np.arange(start, start + batch_size)
        yield np.minimum(rows, num_examples - 1), min(batch_size, num_examples - start)


def _check_model(logits_fn: LogitsFn, x: Array, y: Array, target: Any) -> None:
    with _checks.explain_model_errors():
        logits = _forward(logits_fn, x)
        _checks.check_logits(logits, y[: len(x)])
        for labels in (y, *(target if isinstance(target, tuple) else (target,))):
            _checks.check_labels(labels, len(y))
            _checks.check_label_range(labels, logits.shape[1])
        copies = jnp.broadcast_to(x[:1], x.shape)
        _checks.check_training_mode(_forward(logits_fn, copies)[0], logits[0])


@jax.jit
def _forward(logits_fn: LogitsFn, x: Array) -> Array:
    return logits_fn(x).astype(jnp.float32)


def _total_cost(attack: Attack, num_examples: int) -> dict[str, int] | None:
    cost = getattr(attack, "cost", None)
    if cost is None:
        return None
    # Two forward passes of the evaluation itself: clean and on the returned points.
    return {
        "gradients": num_examples * cost.gradients,
        "forwards": num_examples * (cost.forwards + 2),
    }


def _audit(x_adv: np.ndarray, x: np.ndarray, distance: np.ndarray, threat: Threat):
    """Count the points outside ball or bounds, beyond float32 rounding."""
    # One ulp of each coordinate, summed over the coordinates for l1 at worst.
    ulp = np.spacing(np.abs(x).max().astype(np.float32)) * x[0].size
    radius = np.broadcast_to(np.asarray(threat.eps, np.float32), distance.shape)
    outside_bounds = outside_mask = 0
    if threat.bounds is not None:
        lower, upper = (np.asarray(bound, np.float32) for bound in threat.bounds)
        outside = (x_adv < lower) | (x_adv > upper)
        outside_bounds = int(outside.reshape(len(x_adv), -1).any(axis=1).sum())
    if threat.mask is not None:
        moved = (x_adv != x) & (np.asarray(threat.mask) == 0)
        outside_mask = int(moved.reshape(len(x_adv), -1).any(axis=1).sum())
    return {
        "outside_ball": int((distance > radius * (1 + 1e-6) + ulp).sum()),
        "outside_bounds": outside_bounds,
        "outside_mask": outside_mask,
        "not_finite": int((~np.isfinite(x_adv)).sum()),
        "min": float(x_adv.min()),
        "max": float(x_adv.max()),
    }


def _settings(attack: Attack, threat: Threat, batch_size: int) -> dict[str, Any]:
    names = ("jaxrobust", "jax", "jaxlib", "optax", "flax")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "attack": repr(attack),
        "threat": repr(threat),
        "batch_size": batch_size,
        "matmul_precision": cast(Any, jax.config).jax_default_matmul_precision
        or "default",
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "versions": versions,
    }
