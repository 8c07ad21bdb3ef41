"""The model as a value: made at one door, once for every call, checked, and handed on."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxrobust._core import closure, model_checks
from jaxrobust.surrogates.expectation import Expectation
from jaxrobust.threats import narrow
from jaxrobust.types import Array

_NUMERIC = (jax.Array, np.ndarray, np.generic, int, float)


@dataclasses.dataclass(frozen=True)
class Model:
    """A model, for inputs of one shape; made by `as_model`.

    Args:
      given: What the user has passed; alive for as long as this value is.
      tree: The same as a pytree for `jax.jit`; None inside a transformation, where nothing
        is compiled apart and no value can be seen.
    """

    given: Callable
    tree: Callable | None

    @property
    def fn(self) -> Callable:
        """What to call."""
        return self.given if self.tree is None else self.tree


def as_model(logits_fn: Callable, x: Any, *, is_inside: bool = False) -> Model:
    """Return a model as a value; the door, which anything callable comes through.

    A callable pytree (`Partial`, an Equinox or NNX module) is one already, any other
    function is traced. An expectation stays one, whatever it is made of.

    Args:
      logits_fn: The model.
      x: Inputs, of which only shape and type count.
      is_inside: Whether something else is known to be inside a transformation.
    """
    model_checks.check_callable(logits_fn)
    if is_inside:
        return Model(logits_fn, None)
    if not isinstance(logits_fn, Expectation):
        return Model(logits_fn, _tree(logits_fn, x))
    keys = jax.ShapeDtypeStruct(x.shape[:1], logits_fn.key.dtype)
    is_traced = any_tracer([logits_fn.key])
    inner = None if is_traced else _tree(logits_fn.model_fn, x, keys)
    if inner is None:
        return Model(logits_fn, None)
    return Model(logits_fn, dataclasses.replace(logits_fn, model_fn=inner))


def _tree(function: Callable, x: Any, *keys: Any) -> Callable | None:
    if _is_tree(function):
        return None if any_tracer(jax.tree.leaves(function)) else function
    with model_checks.explain_model_errors(x):
        key, arrays = closure.hoist(function, x, *keys)
    return None if any_tracer(arrays) else jax.tree_util.Partial(key, arrays)


def _is_tree(function: Callable) -> bool:
    # An Equinox module may have functions among its leaves: then it is a closure.
    return all(isinstance(leaf, _NUMERIC) for leaf in jax.tree.leaves(function))


def any_tracer(leaves: Any) -> bool:
    """Whether one of these is inside a transformation."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def check_outputs(attack: Any, fn: Callable, x: Any, y: Any, threat: Any) -> None:
    """Check the shapes of a model's outputs and of every loss; evaluates nothing."""
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    with model_checks.explain_model_errors(x):
        if _is_tree(fn):
            outputs = jax.eval_shape(logits, fn, shape)
        else:
            outputs = jax.eval_shape(lambda x: fn(x), shape)
    model_checks.check_logits(outputs, y, attack.takes)
    for loss, given in attack.losses_with_y(y, threat):
        model_checks.check_loss_values(loss, outputs, given)


@jax.jit
def logits(fn: Callable, x: Array) -> Array:
    """Return the logits of a model that is a pytree."""
    return fn(x)


def rounded(fn: Callable, dtype: Any) -> Callable:
    """Return a model of half precision for points in float32."""
    if isinstance(fn, Expectation):
        return dataclasses.replace(fn, model_fn=narrow.Rounding(fn.model_fn, dtype))
    return narrow.Rounding(fn, dtype)
