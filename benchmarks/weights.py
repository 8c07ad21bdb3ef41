"""A Flax NNX model as plain arrays, which a process without JAX can read."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxrobust as jr
from benchmarks.task import WEIGHTS, Problem


def pack(model: nnx.Module, spec: dict[str, Any], x: np.ndarray) -> Problem:
    """Return the model as a problem: how to create it, its arrays, logits to check.

    Args:
      model: The model; evaluation mode is what is meant.
      spec: Arguments of `jr.models.create`: name, input_shape, num_classes.
      x: Some images `[B, H, W, C]`; the twin in torch must give the same logits.
    """
    named = _named(model).items()
    arrays = {f"{WEIGHTS}{name}": np.asarray(array) for name, array in named}
    logits = jax.jit(lambda f, x: f(x))(jr.models.logits_fn(model), x)
    arrays |= {"probe": x, "probe_logits": np.asarray(logits)}
    return Problem({"model": spec}, arrays)


def unpack(problem: Problem) -> nnx.Module:
    """Return the model of a problem."""
    model = create(problem.settings["model"])
    state, named = nnx.state(model), problem.weights
    leaves = [jnp.asarray(named[name]) for name in _named(model)]
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(state), leaves))
    return model


def create(spec: dict[str, Any]) -> nnx.Module:
    """Return a new model; JSON has made the shape a list."""
    return jr.models.create(**spec | {"input_shape": tuple(spec["input_shape"])})


def _named(model: nnx.Module) -> dict[str, jax.Array]:
    leaves = jax.tree.leaves_with_path(nnx.state(model))
    return {_name(path): leaf for path, leaf in leaves}


def _name(path: Any) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    return name.removesuffix(".value")
