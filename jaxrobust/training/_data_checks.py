"""Checks of what `fit` trains on: data, threats, augmentation, and the model on them."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import losses
from jaxrobust._core import checks as _host_checks
from jaxrobust._core import label_checks, model_checks, threat_rows

# Of inputs in [0, 1], some will be brighter.
_SUSPICIOUS = 0.2


def check_data(x: Any, y: Any, validation: Any) -> tuple[jax.Array, jax.Array, Any]:
    """Return the data on the device, after checking shapes and types."""
    x, y = _to_inputs("x", x), _to_labels("y", y)
    if validation is not None:
        inputs, labels = validation
        validation = _to_inputs("validation", inputs), _to_labels("validation", labels)
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


def _to_inputs(name: str, x: Any) -> jax.Array:
    is_array = hasattr(x, "__array__") or hasattr(x, "__jax_array__")
    if not is_array and not isinstance(x, list | tuple):
        kind = type(x).__name__
        raise TypeError(
            f"{name} is a {kind}; fit draws its batches itself, and needs all inputs as "
            "one array [N, ...] and all labels as one array [N]. From batches: "
            "x, y = (np.concatenate(parts) for parts in zip(*batches)). Training data "
            "that do not fit on the device are given as batches alone, without y."
        )
    x = jnp.asarray(x)
    if not x.ndim:
        raise ValueError(f"{name} has no axes; an array of inputs [N, ...] is needed.")
    return x


def _to_labels(name: str, y: Any) -> jax.Array:
    if not np.issubdtype(np.asarray(y).dtype, np.integer):
        raise TypeError(
            f"{name}: labels are of type {np.asarray(y).dtype}; they are integers: pass "
            "y.astype('int32'), or y.argmax(-1) for one-hot labels."
        )
    return jnp.asarray(y, jnp.int32)


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


def check_range(name: str, x: jax.Array, scale: float, threats: Iterable[Any]) -> None:
    """Check that inputs are finite and inside the bounds of each threat that there is."""
    low, high = (np.asarray(f(x, axis=0) / scale) for f in (jnp.min, jnp.max))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(
            f"{name} holds NaN or infinite values: remove or repair these first."
        )
    if scale != 1 and high.max() < _SUSPICIOUS:
        _host_checks.warn_user(
            f"{name} / scale is at most {high.max():.3g} with scale={scale:g}: pass the "
            "scale that makes the largest possible value 1 (uint8: 255 by default; "
            "jr.data: data.scale for x_train, 1 for what data.images returned)."
        )
    for threat in threats:
        if threat is not None and threat.bounds is not None:
            _check_bounds(f"{name} / scale", low, high, threat)


def _check_bounds(name: str, low: np.ndarray, high: np.ndarray, threat: Any) -> None:
    """Check the least and the largest value of each pixel."""
    if not all(threat_rows.fits(np.shape(b), low.shape) for b in threat.bounds):
        # They are of the shape that `augment` gives to the images.
        widest = np.min(threat.bounds[0]), np.max(threat.bounds[1])
        threat = copy.copy(threat)
        object.__setattr__(threat, "bounds", widest)
    advice = "Pass scale=... (what stands for 1.0)"
    _host_checks.check_bounds(name, low, high, threat, advice)
    _host_checks.check_eps(threat, low.shape)


def check_threat_shapes(owner: str, threat: Any, shape: tuple[int, ...]) -> None:
    """Check that a threat is one for every example of this shape.

    Batches are drawn anew in each epoch: what belongs to a row of the data would be given
    to others.
    """
    if threat is None:
        return
    mask, (lower, upper) = threat.mask, threat.bounds or (None, None)
    if np.size(threat.eps) > 1:
        raise ValueError(
            f"eps of {owner} has shape {np.shape(threat.eps)}, one for each example, but "
            "the batches are shuffled: give one eps for all."
        )
    for name, value in (("mask", mask), ("lower bound", lower), ("upper bound", upper)):
        given = () if value is None else np.shape(value)
        if threat_rows.fits(given, shape):
            continue
        why = "which fits no example"
        if len(given) > len(shape):
            why = "one for each example, but the batches are shuffled"
        elif len(given) < len(shape):
            why = "which could be meant for several axes"
        raise ValueError(
            f"the {name} of {owner} has shape {given}, {why}. Examples have shape {shape}: "
            f"give a scalar, one value for each channel (the last axis), or {len(shape)} "
            "axes, of size 1 where it is the same along them."
        )


def known(threat: Any) -> Any:
    """Return a threat; of a number, which a plain function may take, nothing is known."""
    is_known = threat is not None and not isinstance(threat, int | float)
    return threat_rows.as_threat(threat) if is_known else None


def check_all(
    logits_fn: Callable,
    data: tuple[jax.Array, jax.Array],
    validation: tuple[jax.Array, jax.Array] | None,
    *,
    threats: tuple[Any, Any],
    batch_size: int,
    scale: float,
    augment: Callable | None,
) -> int:
    """Check data, model and the threats of objective and validation with each other.

    Returns the number of classes.
    """
    (x, y), (trained, scored) = data, threats
    shape, num_classes = check_model(logits_fn, x[:batch_size], y, validation, augment)
    trained = [*map(known, trained)]
    for threat in trained:
        check_threat_shapes("the objective's threat", threat, shape)
    check_range("x", x, scale, trained)
    scored = known(scored)
    if validation is not None:
        check_threat_shapes("threat", scored, validation[0].shape[1:])
        check_range("validation", validation[0], scale, [scored])
    return num_classes


def check_model(
    logits_fn: Callable, x: jax.Array, y: jax.Array, validation: Any, augment: Any
) -> tuple[tuple[int, ...], int]:
    """Check what the model returns, and that all labels are its classes.

    For every objective: `fit` trains classifiers, and JAX takes a label of -1 or one too
    many for another class without a word.

    Args:
      logits_fn: The model.
      x: A batch of training inputs, as they are stored.
      y: The labels of all training examples.
      validation: Inputs and labels, or None.
      augment: What is done to a batch before, or None.

    Returns:
      The shape of an example as the objective sees it, and the number of classes.
    """
    shape = _augmented_shape(augment, x)
    num_classes = _check_labels(logits_fn, shape, y)
    if validation is not None:
        _check_labels(logits_fn, (len(x), *validation[0].shape[1:]), validation[1])
    return shape[1:], num_classes


def _check_labels(logits_fn: Callable, shape: tuple[int, ...], y: jax.Array) -> int:
    batch = jax.ShapeDtypeStruct(shape, jnp.float32)
    try:
        with model_checks.explain_model_errors(batch):
            logits = jax.eval_shape(logits_fn, batch)
    except Exception as error:
        if len(shape) == 4 and shape[1] <= 4 < shape[3]:
            raise ValueError(
                f"the model cannot take a batch of shape {shape}, whose channels seem to "
                "come first; modules of flax.nnx take them last: pass "
                f"x.transpose(0, 2, 3, 1). The model's own error: {error}"
            ) from error
        raise
    try:
        model_checks.check_logits(logits, np.zeros(shape[0], np.int32), losses.LABELS)
    except (TypeError, ValueError) as error:
        error.add_note(
            "jr.training.fit trains modules [B, ...] -> [B, C], whatever the objective: "
            "wrap the model in a module whose __call__ returns the logits alone, or write "
            "the loop with the objective and optax, see "
            "notebooks/06_adversarial_training."
        )
        raise
    label_checks.check_range(y, logits.shape[1])
    return logits.shape[1]


def _augmented_shape(augment: Callable | None, x: jax.Array) -> tuple[int, ...]:
    """Return the shape of an augmented batch, after checking that it is one."""
    if augment is None:
        return x.shape
    key = jax.random.key(0)
    try:
        result = jax.eval_shape(augment, key, x)
    except Exception as error:
        if _is_batch(_try(augment, x, key), x):
            raise TypeError(
                "augment takes (x, key), and fit calls augment(key, x), as in "
                "jr.data.pad_crop_flip: exchange its arguments, "
                "augment=lambda key, x: augment(x, key)."
            ) from error
        raise
    if not _is_batch(result, x):
        given = getattr(result, "shape", None)
        raise TypeError(
            f"augment returned a {type(result).__name__}"
            f"{'' if given is None else f' of shape {given}, type {result.dtype}'} for a "
            f"key and a batch of shape {x.shape}; a batch of {len(x)} examples is needed. "
            "fit calls augment(key, x), in this order."
        )
    return result.shape


def _is_batch(result: Any, x: jax.Array) -> bool:
    shape = getattr(result, "shape", ())
    is_key = hasattr(result, "dtype") and jnp.issubdtype(
        result.dtype, jax.dtypes.prng_key
    )
    return len(shape) > 1 and shape[0] == len(x) and not is_key


def _try(function: Callable, *args: Any) -> Any:
    try:
        return jax.eval_shape(function, *args)
    except Exception:
        return None
