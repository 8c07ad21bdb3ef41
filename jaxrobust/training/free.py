"""Free adversarial training: one gradient updates weights and perturbation together."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrobust import losses
from jaxrobust._core import checks, predictions, threat_rows
from jaxrobust.training.objectives import risk
from jaxrobust.types import Array, Loss, PyTree, Threat


class FreeState(NamedTuple):
    """What `free` carries from batch to batch; `delta [B, ...]` begins as zeros.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params, x = jnp.zeros((2, 3)), jnp.ones((4, 2))
      >>> FreeState(params, optax.sgd(0.1).init(params), jnp.zeros_like(x)).delta.shape
      (4, 2)
    """

    params: PyTree
    opt_state: optax.OptState
    delta: Array


def free(
    apply_fn: Callable[[PyTree, Array], Array],
    optimizer: optax.GradientTransformation,
    threat: Threat,
    num_replays: int = 8,
    *,
    loss: Loss = losses.cross_entropy,
) -> Callable[[FreeState, Array, Array], tuple[FreeState, dict[str, Array]]]:
    """Return the step of free adversarial training: each batch is used m times.

    Shafahi et al. 2019, arXiv:1904.12843, algorithm 1: one backward pass gives the gradient
    in the weights, for the optimiser, and in the inputs, for a step of FGSM; delta stays
    for the next replay and for the next batch. There delta is cut to the ball alone, here
    to the bounds of the images that it was made for too.

    An attack and an outer problem that share a gradient are not an `Objective`: this is a
    step for a loop of your own. Train for 1/m of the epochs. N-FGSM is better at this cost.

    A step costs m gradients.

    Args:
      apply_fn: The model, `(params, x [B, ...]) -> logits [B, C]`.
      optimizer: Any Optax optimiser.
      threat: The threat model, e.g. `jr.Linf(8 / 255)`; the step of the attack is eps long.
      num_replays: m, at least 1.
      loss: Per-example loss `(logits, y) -> [B]` of both problems.

    Returns:
      A pure function `(FreeState, x, y) -> (FreeState, metrics)` of batches of one size.

    Raises:
      ValueError: If `num_replays` is less than 1, or the threat has no eps to step by.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr, optax
      >>> optimizer, params = optax.sgd(0.5), jnp.zeros((2, 2))
      >>> step = free(lambda w, x: x @ w, optimizer, jr.Linf(0.25), num_replays=2)
      >>> x, y = jnp.array([[0.75, 0.25]]), jnp.array([0])
      >>> state = FreeState(params, optimizer.init(params), jnp.zeros_like(x))
      >>> state, metrics = step(state, x, y)
      >>> print(state.delta, f"{metrics['loss']:.2f}")
      [[-0.25 -0.25]] 0.55
    """
    checks.check_loss(loss)
    threat = threat_rows.as_threat(threat)
    if not isinstance(num_replays, int) or num_replays < 1:
        raise ValueError(f"num_replays={num_replays!r}: a whole number, at least 1.")

    def mean_loss(params: PyTree, x_adv: Array, y: Array) -> Any:
        return risk(loss, predictions.wide(apply_fn(params, x_adv)), y)

    def step(state: FreeState, x: Array, y: Array) -> Any:
        def replay(state: FreeState, _: None) -> Any:
            x_adv = threat.project(x + state.delta, x)
            both = jax.grad(mean_loss, argnums=(0, 1), has_aux=True)
            (grads, uphill), metrics = both(state.params, x_adv, y)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            moved = x_adv + threat.steepest(uphill, x_adv, jnp.asarray(threat.eps))
            delta = threat.project(moved, x) - x
            return FreeState(params, opt_state, delta), metrics

        state, metrics = jax.lax.scan(replay, state, None, length=num_replays)
        return state, jax.tree.map(lambda value: value[-1], metrics)

    return step
