"""From a Flax NNX module to the pure function that attacks and evaluations take."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def logits_fn(model: nnx.Module) -> jax.tree_util.Partial:
    """Return the model in evaluation mode as a pure function of the images.

    The function is a pytree whose leaves are the parameters and whose structure is the
    architecture. Pass it through `jax.jit` as an argument, and two models of the same
    architecture, or two states of one model, share one compiled program. It is a
    snapshot: training the model afterwards does not change it. Batch normalisation uses
    its running statistics and dropout does nothing, whatever mode the model is in; the
    model keeps its mode.

    Args:
        model: any NNX module with `model(x) -> logits`.

    Returns:
        A callable [B, ...] -> [B, C], to be called inside `jit`, `grad`, `vmap` and
        `scan` as well as outside.

    Raises:
        TypeError: if `model` is not an NNX module, or holds a static attribute that
            cannot be hashed.

    Example:
        >>> model = nnx.Sequential(
        ...     nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1))
        ... )
        >>> f = logits_fn(model)
        >>> x = jnp.ones((2, 4))
        >>> bool((f(x) == model.layers[0](x)).all())
        True
        >>> jax.jit(lambda f, x: f(x))(f, x).shape
        (2, 3)
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(_advice(model))
    view = nnx.view(
        model,
        use_running_average=True,
        deterministic=True,
        raise_if_not_found=False,
    )
    graphdef, state = nnx.split(view)
    try:
        hash(graphdef)
    except TypeError as error:
        raise TypeError(
            f"{type(model).__name__} holds a static attribute that cannot be hashed "
            f"({error}), so its compiled programs could not be found again: store "
            "lists of layers in nnx.List, arrays in nnx.Variable or nnx.data, and "
            "plain values in tuples"
        ) from error
    # New buffers: the training step may donate the old ones.
    return jax.tree_util.Partial(_apply, graphdef, jax.tree.map(jnp.copy, state))


def _apply(graphdef: nnx.GraphDef, state: nnx.State, x: jax.Array) -> jax.Array:
    # The copy keeps whatever the call writes to the module out of `state`.
    return nnx.merge(graphdef, state, copy=True)(x)


def _advice(model: Any) -> str:
    start = f"logits_fn needs a flax.nnx.Module, but was given {type(model).__name__}"
    if isinstance(model, type):
        return f"{start} {model.__name__!r}: create an instance of it first"
    if any(base.__module__.startswith("flax.linen") for base in type(model).__mro__):
        return f"{start}: use jax.tree_util.Partial(model.apply, variables) instead"
    if hasattr(model, "best"):
        return f"{start}: pass its best, or its last, model"
    if callable(model):
        return (
            f"{start}: a pure function [B, ...] -> [B, C] needs no adapter, pass it to "
            "the attack as it is"
        )
    return f"{start}: build a model with jaxrobust.models.create or flax.nnx"
