"""The jitted function of training: one optimiser step.

It is pure: a Flax NNX module enters as a graph definition (static) and plain
arrays, and is merged again inside, so that nothing is mutated outside the step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.tree_util import Partial

from jaxrobust._core.placing import Placing
from jaxrobust._cpu.convolution import fast_convolutions
from jaxrobust.training import _checks
from jaxrobust.training.objectives import Objective
from jaxrobust.training.updates import update
from jaxrobust.types import Gradient, LogitsFn


class Views(NamedTuple):
    """A model's graph definitions in training and in evaluation mode."""

    train: Any
    eval: Any


class Weights(NamedTuple):
    """A model's arrays: trained parameters, and the rest (statistics, rngs)."""

    params: Any
    rest: Any


class TrainState(NamedTuple):
    """Everything that one training step reads and writes.

    Attributes:
      step: [], int32, optimiser steps done.
      weights: what the optimiser changes and the statistics that go with it.
      opt_state: the optimiser's state.
      ema: moving average of `weights`, None where there is none.
    """

    step: jax.Array
    weights: Weights
    opt_state: Any
    ema: Weights | None

    @property
    def evaluated(self) -> Weights:
        """The weights to validate, keep and return: the average where there is one."""
        return self.weights if self.ema is None else self.ema


def split_model(model: nnx.Module) -> tuple[Views, Weights]:
    """Split a copy of `model` into its two views and its arrays."""
    in_train, in_eval = nnx.clone(model), nnx.clone(model)
    in_train.train()
    in_eval.eval()
    train_graph, params, rest = nnx.split(in_train, nnx.Param, ...)
    eval_graph, _, _ = nnx.split(in_eval, nnx.Param, ...)
    # New buffers: the step donates its state, and the caller keeps the model.
    weights = Weights(nnx.as_pure(params), nnx.as_pure(rest))
    return Views(train_graph, eval_graph), copy_tree(weights)


def value_and_grad(loss_fn: Callable, params: Any) -> tuple[tuple[jax.Array, Any], Any]:
    """Return ((loss, aux), grads): how `fit` differentiates unless it is told otherwise."""
    return jax.value_and_grad(loss_fn, has_aux=True)(params)


def copy_tree(tree: Any) -> Any:
    """Return the tree in buffers of its own, which survive a donated step."""
    return jax.tree.map(jnp.copy, tree)


def _apply(graph: Any, weights: Weights, x: jax.Array) -> jax.Array:
    # copy=True: a mutating module (BatchNorm in train mode) inside an inner scan.
    return nnx.merge(graph, weights.params, weights.rest, copy=True)(x)


def logits_fn(graph: Any, weights: Weights) -> LogitsFn:
    """Return the pure function x -> logits of a view and arrays."""
    return Partial(partial(_apply, graph), weights)


def merge_eval(views: Views, weights: Weights) -> nnx.Module:
    """Return a module in evaluation mode that owns its arrays."""
    return nnx.merge(views.eval, *copy_tree(weights), copy=True)


def to_unit(x: jax.Array, scale: float) -> jax.Array:
    """Convert stored inputs to float32 and divide them by `scale`."""
    return x.astype(jnp.float32) / scale


def moving_average(old: Weights, new: Weights, step: jax.Array, decay: float):
    """Average the floating-point arrays; counters and keys are taken over.

    Early on, the decay is (1 + step) / (10 + step), so that the start is forgotten
    (`num_updates` of tf.train.ExponentialMovingAverage).
    """
    share = 1 - jnp.minimum(decay, (1 + step) / (10 + step))

    def average(old, new):
        is_float = jnp.issubdtype(new.dtype, jnp.inexact)
        return optax.incremental_update(new, old, share) if is_float else new

    return jax.tree.map(average, old, new)


def make_train_step(
    views: Views,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    gradient: Gradient = value_and_grad,
    batch_size: int,
    scale: float,
    augment: Callable[..., jax.Array] | None,
    attacked_mode: str,
    ema_decay: float | None,
    placing: Placing,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Return the step (state, x, y, order, key) -> (state, metrics)."""
    attacked_view = views.train if attacked_mode == "train" else views.eval

    @jax.jit  # so that it is traced once, whoever looks at it
    def train_step(state, x, y, order, key):
        augment_key, objective_key = jax.random.split(
            jax.random.fold_in(key, state.step)
        )
        if order is not None:  # else they are the batch
            start = state.step % (len(order) // batch_size) * batch_size
            index = jax.lax.dynamic_slice_in_dim(order, start, batch_size)
            x, y = x[index], y[index]
        x, y = placing.constrain((x, y))
        if augment is not None:
            x = augment(augment_key, x)
        x = to_unit(x, scale)
        params, rest = state.weights

        def attack(params):  # the inner maximisation
            frozen = jax.lax.stop_gradient(params)
            attacked = logits_fn(attacked_view, Weights(frozen, rest))
            found = objective.inner(attacked, x, y, key=objective_key, step=state.step)
            return jax.lax.stop_gradient(found)

        @fast_convolutions
        def loss_at(params, found):  # the outer minimisation, at what it has found
            trained = nnx.merge(views.train, params, rest, copy=True)
            result = objective.outer(trained, x, y, found, step=state.step)
            loss, metrics = _checks.check_result(result)
            _, _, new_rest = nnx.split(trained, nnx.Param, ...)
            return loss, (metrics, nnx.as_pure(new_rest))

        found = attack(params)
        (loss, (metrics, rest)), grads = gradient(partial(loss_at, found=found), params)
        updates, opt_state = update(
            optimizer,
            grads,
            state.opt_state,
            params,
            value=loss,
            value_fn=lambda params: loss_at(params, attack(params))[0],
        )
        weights = Weights(optax.apply_updates(params, updates), rest)
        ema = state.ema
        if ema is not None and ema_decay is not None:
            ema = moving_average(ema, weights, state.step, ema_decay)
        metrics = metrics | {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, weights, opt_state, ema), metrics

    return train_step


def make_train_steps(train_step: Callable, most: int) -> Callable:
    """Return the jitted function that takes at most so many steps.

    (state, x, y, order, key, num_steps) -> (state, metrics [most]); `num_steps` is traced,
    and what the metrics hold beyond it means nothing.
    """

    @partial(jax.jit, donate_argnums=0)
    def train_steps(state, x, y, order, key, num_steps):
        if most == 1:
            state, metrics = train_step(state, x, y, order, key)
            return state, jax.tree.map(lambda value: value[None], metrics)

        def step(i, carry):
            state, log = carry
            state, metrics = train_step(state, x, y, order, key)
            return state, jax.tree.map(lambda a, v: a.at[i].set(v), log, metrics)

        _, shapes = jax.eval_shape(train_step, state, x, y, order, key)
        log = jax.tree.map(lambda v: jnp.zeros((most, *v.shape), v.dtype), shapes)
        return jax.lax.fori_loop(0, num_steps, step, (state, log))

    return train_steps
