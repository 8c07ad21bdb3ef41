"""A Flax NNX model as plain arrays, which a process without JAX can read."""

from typing import Any

import jax
import numpy as np
from flax import nnx

import jaxrobust as jr
from benchmarks.task import WEIGHTS, Problem
from jaxrobust.models import arrays


def pack(model: nnx.Module, spec: dict[str, Any], x: np.ndarray) -> Problem:
    """Return the model as a problem: how to create it, its arrays, logits to check.

    Args:
      model: The model; evaluation mode is what is meant.
      spec: Arguments of `jr.models.create`: name, input_shape, num_classes.
      x: Some images `[B, H, W, C]`; the twin in torch must give the same logits.
    """
    named = arrays.to_arrays(model).items()
    packed = {f"{WEIGHTS}{name}": array for name, array in named}
    logits = jax.jit(lambda f, x: f(x))(jr.models.logits_fn(model), x)
    packed |= {"probe": x, "probe_logits": np.asarray(logits)}
    return Problem({"model": spec}, packed)


def unpack(problem: Problem) -> nnx.Module:
    """Return the model of a problem."""
    return arrays.from_arrays(create(problem.settings["model"]), problem.weights)


def create(spec: dict[str, Any]) -> nnx.Module:
    """Return a new model; JSON has made the shape a list."""
    return jr.models.create(**spec | {"input_shape": tuple(spec["input_shape"])})
