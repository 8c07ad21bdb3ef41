"""What can be seen of a model before it is attacked, and what its errors mean."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust._core import kinds, label_checks
from jaxrobust._core.checks import warn_user

_TRAINING_MODE = (
    "the model is in training mode: its batch statistics or its dropout change while "
    "it is attacked. Pass a function in evaluation mode: jr.models.logits_fn(model) "
    "or nnx.view(model, use_running_average=True, deterministic=True) for Flax NNX, "
    "model.apply(variables, x, train=False) for Linen, "
    "eqx.nn.inference_mode(model) for Equinox."
)


_LAYOUTS = (
    " Flax and Haiku take images as [B, H, W, C], Equinox and PyTorch as [B, C, H, W]."
)

_NOT_TRACEABLE = (
    "logits_fn cannot be traced by JAX: it makes NumPy arrays or Python numbers of its "
    "input (np.maximum(x, 0), float(x), `if x.max() > 1`). Write it with jax.numpy, and "
    "choices with jnp.where. A model that is not a JAX program has no gradient: attack it "
    "with jr.Square or jr.SPSA through jax.pure_callback."
)


_NOT_AN_ARRAY = (
    "logits_fn returned something that is not an array, such as the output object of a "
    "Hugging Face model: pass lambda x: model(x).logits, or whatever picks the logits."
)

_NO_GRADIENT = (
    "logits_fn calls the host (jax.pure_callback), which has no gradient: attack it with "
    "jr.Square or jr.SPSA, which look at outputs only, or give it a derivative by jr.bpda."
)


def check_callable(logits_fn: Any) -> None:
    """Raise where something else was passed as a model."""
    module = _module_of(logits_fn)
    if module:
        raise TypeError(f"logits_fn is a {module}")
    if not callable(logits_fn):
        model = "logits_fn.best" if hasattr(logits_fn, "best") else "model"
        raise TypeError(
            f"logits_fn is a {type(logits_fn).__name__}; a function [B, ...] -> [B, C] is "
            f"needed: pass jr.models.logits_fn({model}) for Flax NNX."
        )


# What is callable and not a function of inputs, by the module that its class comes from.
_MODULES = {
    "torch": "module of PyTorch, which JAX cannot differentiate: load its weights into a "
    "JAX network, or attack it by its outputs alone, jr.Square or jr.SPSA through "
    "jax.pure_callback.",
    "flax.linen": "Linen module, which has no weights of its own: pass lambda x: "
    "model.apply(variables, x, train=False).",
}


def _module_of(logits_fn: Any) -> str | None:
    """Return what to say of a model of another framework."""
    names = [f"{kind.__module__}." for kind in type(logits_fn).__mro__]
    for name, text in _MODULES.items():
        if any(n.startswith(f"{name}.") for n in names):
            return text
    return None


def check_logits(logits: Any, y: Any, takes: str) -> None:
    """Check the shape of the outputs, and that labels are classes of the model.

    Args:
      logits: What the model returned, or its shape.
      y: What the loss takes.
      takes: What that is, see `jaxrobust.losses`.
    """
    num_examples = jax.tree.leaves(y)[0].shape[0]
    if not hasattr(logits, "ndim"):
        raise TypeError(
            f"logits_fn returned a {type(logits).__name__}; an array [B, C] is needed: "
            'pass lambda x: model(x)[0], model(x)["logits"], model(x).logits, or whatever '
            "picks them."
        )
    has_labels = takes in (kinds.LABELS, kinds.TARGETS, kinds.PAIR)
    if takes == kinds.ANYTHING and not isinstance(y, tuple):
        has_labels = y.ndim == 1 and jnp.issubdtype(y.dtype, jnp.integer)
    if has_labels:
        _check_classes(logits, num_examples)
    elif not logits.ndim or logits.shape[0] != num_examples:
        raise ValueError(
            f"logits_fn returned shape {logits.shape}; one row for each of the "
            f"{num_examples} examples is needed."
        )
    if takes in (kinds.LOGITS, kinds.MULTI_HOT, kinds.VALUES):
        _check_same(logits.shape, y.shape, takes)
    if takes == kinds.POSITIONS:
        _check_same(logits.shape[:-1], y.shape, takes)
    if has_labels or takes == kinds.POSITIONS:
        label_checks.check_range(y, logits.shape[-1])


def _check_classes(logits: Any, num_examples: int) -> None:
    if logits.ndim != 2 or logits.shape[0] != num_examples or logits.shape[1] < 2:
        raise ValueError(
            f"logits_fn returned shape {logits.shape}; [B, C] = [{num_examples}, number "
            "of classes >= 2] is needed. A binary model with one output z can return "
            "jnp.stack([jnp.zeros_like(z), z], -1); one for a single example becomes one "
            "for a batch by jax.vmap(model). Other models have other losses: "
            "jr.losses.squared_error, binary_cross_entropy, per_position."
        )


def _check_same(found: tuple, given: tuple, takes: str) -> None:
    if found != given:
        raise ValueError(
            f"y has shape {given}; the loss takes {takes}, of shape {found} for the "
            "outputs of this model."
        )


def check_loss_values(loss: Any, logits: Any, y: Any) -> None:
    """Raise unless a loss returns one value for each example."""
    wide = jax.ShapeDtypeStruct(
        logits.shape, jnp.promote_types(logits.dtype, jnp.float32)
    )
    try:
        values = jax.eval_shape(loss, wide, y)
    except Exception as error:
        given = jax.tree.map(lambda leaf: leaf.shape, y)
        error.add_note(
            f"jaxrobust called loss={loss!r} with logits of shape {logits.shape} and y of "
            f"shape {given}. In jr.evaluate, what a loss takes instead of labels is passed "
            "as target=; jr.Targets(attack) makes pairs of labels and targets."
        )
        raise
    num_examples = logits.shape[0]
    if getattr(values, "shape", None) != (num_examples,):
        raise ValueError(
            f"loss={loss!r} returned shape {getattr(values, 'shape', None)}; one value for "
            f"each example, ({num_examples},), is needed: no mean over the batch, and no "
            "axis of length 1."
        )


def check_finite_logits(logits: np.ndarray) -> None:
    """Raise if clean logits, [N, C], are NaN or infinite; -inf may exclude a class."""
    bad = (np.isnan(logits) | np.isposinf(logits)).any(axis=1)
    if bad.any():
        raise ValueError(
            f"logits_fn returns NaN or infinite logits for {bad.sum()} of {len(logits)} "
            f"clean inputs, the first of which is number {bad.argmax()}: no attack can "
            "see these and no accuracy would mean anything. Repair the model."
        )


def check_not_probabilities(logits: jax.Array) -> None:
    """Warn if a few rows of logits, [B, C], are probabilities."""
    if logits.ndim != 2:
        return
    values = np.asarray(logits.astype(jnp.float32))
    sums = values.sum(axis=1)
    if len(values) and values.min() >= 0 and np.all(np.abs(sums - 1) < 1e-4):
        warn_user(
            "logits_fn seems to return probabilities (rows in [0, 1] that sum to 1). "
            "Gradients through a saturated softmax vanish and the attack would be "
            "weak: return the logits before the softmax."
        )


@contextlib.contextmanager
def explain_model_errors(x: Any = None) -> Iterator[None]:
    """Say what to do about an error of the model.

    Args:
      x: What the model is called with, where nothing else happens inside.
    """
    try:
        yield
    except Exception as error:
        # Flax is not imported here; a model of Flax has imported it.
        errors = getattr(sys.modules.get("flax"), "errors", None)
        if errors and isinstance(error, errors.TraceContextError):
            raise ValueError(_TRAINING_MODE) from error
        if x is not None and isinstance(error, _TRACER_ERRORS):
            raise ValueError(_NOT_TRACEABLE) from error
        if "not a valid JAX type" in str(error):
            raise TypeError(_NOT_AN_ARRAY) from error
        if "allbacks do not support JVP" in str(error):
            raise ValueError(_NO_GRADIENT) from error
        if x is not None and isinstance(error, TypeError | ValueError):
            note = f"jaxrobust called logits_fn with a batch of shape {x.shape}."
            error.add_note(note + _LAYOUTS * (x.ndim == 4))
        raise


_TRACER_ERRORS = (
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
)


def check_training_mode(alone: jax.Array, together: jax.Array) -> None:
    """Raise if an example's logits depend on the examples beside it.

    Args:
      alone: Logits of copies of one example, all in one batch.
      together: Logits of the same example in its own batch, of the same or one row.
    """
    scale = float(jnp.max(jnp.abs(together))) + 1e-6
    # 1e-2 is far above rounding, also in bfloat16 or TF32, and far below batch statistics.
    if float(jnp.max(jnp.abs(alone - together))) > 1e-2 * scale:
        raise ValueError(
            f"An example's logits depend on its neighbours: {_TRAINING_MODE}"
        )
