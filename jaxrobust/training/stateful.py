"""Objectives of models with a state: batch statistics, the keys of dropout."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import Partial

from jaxrobust._core import batching, pytree
from jaxrobust._core.representation import concise
from jaxrobust.training.objectives import Objective, as_objective
from jaxrobust.types import Array, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class Stateful:
    """The two problems as functions of parameters and state; made by `stateful`."""

    objective: Objective
    train_fn: Callable
    eval_fn: Callable

    __repr__ = concise

    def inner(self, params, state, x, y, *, key=None, step=None) -> Any:
        """Return what the adversary has found against `eval_fn`, held fixed."""
        attacked_fn = Partial(self.eval_fn, jax.lax.stop_gradient(params), state)
        found = self.objective.inner(attacked_fn, x, y, key=key, step=step)
        return jax.lax.stop_gradient(found)

    def outer(self, params, state, x, y, found, *, step=None) -> tuple[Array, Any]:
        """Return the loss to minimise and (metrics, next state)."""
        trained_fn = _Trained(batching.as_pytree(self.train_fn), params, state)
        loss, metrics = self.objective.outer(trained_fn, x, y, found, step=step)
        return loss, (metrics, trained_fn.state)

    def __call__(self, params, state, x, y, *, key=None, step=None) -> Any:
        """Return the loss and (metrics, next state)."""
        found = self.inner(params, state, x, y, key=key, step=step)
        return self.outer(params, state, x, y, found, step=step)


@pytree.register
@dataclasses.dataclass  # a pytree: a copy, made under `jax.grad`, has a state of its own
class _Trained:
    """The model of one evaluation of a loss; each call begins where the last has ended."""

    train_fn: Any
    params: Any
    state: Any

    def __call__(self, x: Array) -> Array:
        result = self.train_fn(self.params, self.state, x)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                f"train_fn returned a {type(result).__name__}; stateful needs "
                "train_fn(params, state, x) -> (logits, next state)."
            )
        logits, state = result
        given, found = map(jax.tree.structure, (self.state, state))
        if given != found:
            raise ValueError(
                f"train_fn was given a state of the structure {given} and returned one "
                f"of {found}: return the whole state, as it was given."
            )
        self.state = state
        return logits


def stateful(
    objective: Any,
    train_fn: Callable[[PyTree, PyTree, Array], tuple[Array, PyTree]],
    eval_fn: Callable[[PyTree, PyTree, Array], Array],
) -> Stateful:
    """Return the loss of a model with a state, for `jax.value_and_grad(has_aux=True)`.

    The adversary sees `eval_fn`; the gradient goes through `train_fn`. An objective that
    calls the model several times, as TRADES does, hands the state on from call to call.
    `docs/own_loop.md` has Flax Linen, Equinox and NNX.

    A pure function; crafting and differentiating can be had apart, for `AWP` and `SAM`:
    `found = loss_fn.inner(params, state, x, y, key=key)`, held fixed, then the gradient of
    `loss_fn.outer(params, state, x, y, found)`.

    Args:
      objective: Any objective, e.g. `jr.training.trades(attack, threat)`.
      train_fn: The model in training mode, `(params, state, x) -> (logits, next state)`.
        The state is any pytree: batch statistics, a key that is split at each call.
      eval_fn: The model in evaluation mode, `(params, state, x) -> logits`.

    Returns:
      `(params, state, x, y, *, key=None, step=None) -> (loss, (metrics, next state))`.

    Raises:
      TypeError: If the objective is none; when called, if `train_fn` returns no pair.
      ValueError: When called, if the next state has another structure.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> def train_fn(params, count, x):
      ...     return x * params, count + 1
      >>> def eval_fn(params, count, x):
      ...     return x * params
      >>> attack = jr.PGD(num_steps=2, loss=jr.losses.kl)
      >>> loss_fn = stateful(jr.training.trades(attack, jr.Linf(0.1)), train_fn, eval_fn)
      >>> x, y, key = jnp.array([[0.2, 0.6]]), jnp.array([0]), jax.random.key(0)
      >>> gradient = jax.value_and_grad(loss_fn, has_aux=True)
      >>> (loss, (metrics, count)), grads = gradient(jnp.float32(1), 0, x, y, key=key)
      >>> print(count)
      2
    """
    return Stateful(as_objective(objective), train_fn, eval_fn)
