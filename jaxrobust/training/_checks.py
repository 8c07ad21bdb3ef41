"""Checks of the arguments of `fit`, on the host and before any work."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrobust import _batch, _labels, _model_checks, losses
from jaxrobust import _checks as _host_checks
from jaxrobust.attacks import items
from jaxrobust.training import objectives

# Of inputs in [0, 1], some will be brighter.
_SUSPICIOUS = 0.2


def check_parts(model: Any, objective: Any, optimizer: Any) -> None:
    """Raise where one of the three is something else."""
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"model is a {type(model).__name__}; fit trains modules of flax.nnx. For "
            "another framework write the loop with the objective and optax, see "
            "notebooks/10_your_own_model."
        )
    factories = (objectives.standard, objectives.adversarial)
    is_factory = any(objective is factory for factory in factories)
    if is_factory or not callable(objective) or hasattr(objective, "needs_key"):
        raise TypeError(
            f"objective={objective!r} is no objective: pass jr.training.standard() or "
            "jr.training.adversarial(attack, threat)."
        )
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"optimizer={optimizer!r} is no optimiser of optax: pass one such as "
            "optax.adam(1e-3)."
        )


def check_model(
    logits_fn: Any, x: jax.Array, y: jax.Array, validation: Any, augment: Any
) -> None:
    """Check what the model returns for a batch, and that all labels are its classes.

    Args:
      logits_fn: The model.
      x: A batch of training inputs, as they are stored.
      y: The labels of all training examples.
      validation: Inputs and labels, or None.
      augment: What is done to a batch before, or None.
    """
    augmented = x if augment is None else jax.eval_shape(augment, jax.random.key(0), x)
    batch = jax.ShapeDtypeStruct(augmented.shape, jnp.float32)
    with _model_checks.explain_model_errors(batch):
        logits = jax.eval_shape(logits_fn, batch)
    _model_checks.check_logits(logits, y[: len(x)], losses.LABELS)
    for labels in (y, *([] if validation is None else [validation[1]])):
        _labels.check_range(labels, logits.shape[1])


def check_data(x: Any, y: Any, validation: Any) -> tuple[jax.Array, jax.Array, Any]:
    """Return the data on the device, after checking shapes and types."""
    x, y = jnp.asarray(x), _to_labels("y", y)
    if validation is not None:
        validation = jnp.asarray(validation[0]), _to_labels("validation", validation[1])
    for name, pair in (("x, y", (x, y)), ("validation", validation)):
        if pair is None:
            continue
        if pair[1].ndim != 1 or len(pair[0]) != len(pair[1]) or not len(pair[1]):
            raise ValueError(
                f"{name}: inputs [N, ...] and labels [N] are needed, given are the "
                f"shapes {pair[0].shape} and {pair[1].shape}."
            )
    if validation is not None and validation[0].dtype != x.dtype:
        raise ValueError(
            f"validation inputs are {validation[0].dtype}, training inputs {x.dtype}; "
            "both are divided by the same scale, so give both in the same dtype."
        )
    return x, y, validation


def _to_labels(name: str, y: Any) -> jax.Array:
    if not np.issubdtype(np.asarray(y).dtype, np.integer):
        raise TypeError(
            f"{name}: labels are of type {np.asarray(y).dtype}; they are integers: pass "
            "y.astype('int32'), or y.argmax(-1) for one-hot labels."
        )
    return jnp.asarray(y, jnp.int32)


def check_range(x: jax.Array, scale: float, objective: Any) -> None:
    """Check that inputs are finite and inside the bounds of the objective's threat."""
    low, high = (np.asarray(f(x, axis=0) / scale) for f in (jnp.min, jnp.max))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(
            "x holds NaN or infinite values: remove or repair these first."
        )
    if scale != 1 and high.max() < _SUSPICIOUS:
        _host_checks.warn_user(
            f"x / scale is at most {high.max():.3g} with scale={scale:g}: pass the scale "
            "that makes the largest possible value 1 (uint8: 255 by default; "
            "jr.data: data.scale for x_train, 1 for what data.images returned)."
        )
    threat: Any = getattr(objective, "threat", None)
    if getattr(threat, "bounds", None) is not None:
        advice = "Pass scale=... (what stands for 1.0)"
        shapes = [np.shape(bound) for bound in threat.bounds]
        if any(shape not in ((), low.shape) for shape in shapes):
            # Perhaps of the shape that `augment` gives to the images.
            widest = np.min(threat.bounds[0]), np.max(threat.bounds[1])
            threat = dataclasses.replace(threat, bounds=widest)
        _host_checks.check_bounds("x / scale", low, high, threat, advice)
        _host_checks.check_eps(threat, low.shape)


def check_options(
    num_examples: int,
    num_epochs: int,
    batch_size: int,
    checkpoint_every: int | None,
    ema_decay: float | None,
    attacked_mode: str,
    key: jax.Array,
) -> None:
    """Check the ranges of the options."""
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"batch_size is {batch_size}; it must lie between 1 and the number of "
            f"training examples, {num_examples}."
        )
    if num_epochs < 1:
        raise ValueError(f"num_epochs is {num_epochs}; at least 1 is needed.")
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ValueError(
            f"ema_decay is {ema_decay}; it must lie in (0, 1), or be None."
        )
    if attacked_mode not in ("eval", "train"):
        raise ValueError(f'attacked_mode is {attacked_mode!r}; use "eval" or "train".')
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(
            f"checkpoint_every is {checkpoint_every}; give a number of steps, at least "
            "1, or None for one epoch."
        )
    if not _batch.is_keys(key):
        raise TypeError(f"key={key!r} is not a typed key: pass jax.random.key(seed).")


def check_steps_per_call(steps: int | None) -> None:
    """Check the number of steps in one call."""
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise ValueError(
            f"steps_per_call is {steps!r}; give a whole number of at least 1, or None."
        )


def to_scale(x: jax.Array, scale: float | None) -> float:
    """Return what the inputs are divided by."""
    if scale is not None:
        if not scale > 0:
            raise ValueError(f"scale is {scale}; it divides the inputs: give it > 0.")
        return float(scale)
    if x.dtype == jnp.uint8:
        return 255.0
    if jnp.issubdtype(x.dtype, jnp.floating):
        return 1.0
    raise ValueError(
        f"x is {x.dtype}; say what stands for 1.0 (scale=...), or give uint8 (255 "
        "stands for 1.0) or floats."
    )


def check_validation(validation: Any, attack: Any, threat: Any) -> None:
    """Check that an attack comes with examples and a threat."""
    if attack is not None and (validation is None or threat is None):
        raise ValueError(
            "validation_attack needs the examples to attack and what is allowed: give "
            "validation=(x_val, y_val) and threat=..., or no validation_attack."
        )
    if attack is not None:
        _host_checks.check_attack(attack)
        items.check_takes_labels(attack, "validation_attack")


def check_steps(done: int, num_steps: int) -> None:
    """Check that a resumed run is not beyond its end."""
    if done > num_steps:
        raise ValueError(
            f"the run in `out` has done {done} steps, more than the {num_steps} of "
            "num_epochs. Give at least as many epochs, another out, or resume=False."
        )


def check_mesh(mesh: Any, batch_size: int) -> None:
    """Raise where a batch cannot be spread."""
    if mesh is not None and batch_size % mesh.size:
        raise ValueError(
            f"batch_size={batch_size} cannot be spread over {mesh.size} devices: choose "
            "a multiple of their number."
        )
