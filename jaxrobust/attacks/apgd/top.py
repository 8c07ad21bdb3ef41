"""The iterate of the largest loss: where Auto-PGD restarts, and its last step."""

from typing import Any

import jax.numpy as jnp

from jaxrobust._core import batching
from jaxrobust.types import Array, Threat


def keep_top(state: Any, loss: Array, grad: Array) -> Any:
    """Keep the iterate of the largest loss, whether it succeeds or not."""
    loss = loss.astype(state.top_loss.dtype)
    is_larger = loss > state.top_loss
    return state._replace(
        top=batching.where(is_larger, state.x_adv, state.top),
        top_grad=batching.where(is_larger, grad, state.top_grad),
        top_loss=jnp.where(is_larger, loss, state.top_loss),
    )


def last_point(state: Any, threat: Threat) -> Array:
    """Return the maximiser over the threat of the loss linearised at the best iterate.

    The published algorithm ends with one more of its by then short steps. Inside a box its
    fixed points for l_2 and l_1 are not quite optimal (its l_2 "projection" is not the
    nearest point, its l_1 steps never get sparser than two coordinates); the last
    step is spent on the point that is optimal where the model is linear. It counts, like
    every iterate, only if it is better.
    """
    delta = threat.steepest(state.top_grad, state.x, threat.eps)
    return threat.project((state.x + delta).astype(state.x.dtype), state.x)
