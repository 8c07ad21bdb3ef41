"""From a Flax NNX module to a pure function."""

from typing import Any

import jax
from flax import nnx


def logits_fn(model: nnx.Module) -> jax.tree_util.Partial:
    """Return the pure function x -> logits of a module in evaluation mode.

    The parameters are leaves of the returned pytree: compiled code takes them as
    arguments, so that one compiled attack serves all weights of an architecture. The
    function is a snapshot; training the module later does not change it.

    Args:
      model: Any Flax NNX module that maps `[B, ...]` to `[B, C]`.

    Returns:
      A callable pytree for attacks, `evaluate` and `jax.jit`.

    Raises:
      TypeError: If `model` is not an NNX module.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> f = logits_fn(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> f(jnp.zeros((2, 4))).shape
      (2, 3)
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"logits_fn takes a Flax NNX module, not {type(model).__name__}. Functions "
            "need no adapter. For Flax Linen pass jax.tree_util.Partial(model.apply, "
            "variables); for Equinox jax.vmap(model); for Haiku "
            "jax.tree_util.Partial(network.apply, params)."
        )
    view = nnx.clone(model)
    view.eval()
    graphdef, state = nnx.split(view)
    return jax.tree_util.Partial(_apply, graphdef, state)


def _apply(graphdef: Any, state: Any, x: jax.Array) -> jax.Array:
    # copy=True: a module that counts or draws mutates itself, also inside a scan.
    return nnx.merge(graphdef, state, copy=True)(x)
