"""What the result of an evaluation depends on, as a digest: who may resume it."""

import hashlib
import json
import re
from typing import Any, cast

import jax
import numpy as np

from jaxrobust import losses
from jaxrobust._core import batching, predictions
from jaxrobust._core.program_digest import HostCallError, program_digest
from jaxrobust._cpu.convolution import fast_convolutions
from jaxrobust.evaluation.queue._problem import Problem, Stage

# Settings of JAX that change draws or types.
_FLAGS = ("jax_enable_x64", "jax_threefry_partitionable", "jax_default_prng_impl")


def fingerprint(
    problem: Problem, stages: list[Stage], settings: dict, extra: Any, size: int
) -> str:
    """Return a digest of everything that the result depends on, equal in every process.

    Neither the text of an attack nor clean logits can say what a closure does, or what the
    gradient of the model is. The programs that are run can.

    Args:
      problem: The model, by its program and its arrays, and the data.
      stages: The attacks, by their programs.
      settings: Further values, as for the report.
      extra: Further arrays.
      size: Examples in a batch.

    Raises:
      ValueError: If a part of the program is not JAX's, and cannot be known.
    """
    flags = {name: getattr(cast(Any, jax.config), name) for name in _FLAGS}
    digest = hashlib.sha256(_text(settings | flags))
    model, attacks = problem.logits_fn, [stage.attack for stage in stages]
    targets = [stage.y for stage in stages]
    data = (problem.x, problem.y, targets, extra)
    values = (model, attacks, problem.threat, *data)
    leaves = [_data(leaf) for leaf in jax.tree.leaves(values)]
    for leaf in map(np.asarray, problem.placing.fetch(leaves)):
        digest.update(_text((str(leaf.dtype), leaf.shape)) + leaf.tobytes())
    try:
        for stage in stages:
            digest.update(_program(stage, problem, size).encode())
    except HostCallError as error:
        raise ValueError(
            f"state_file: {error} A run that goes on from the file could not tell this "
            "model from another one: leave state_file out, and evaluate a large data set "
            "in parts, each with its report."
        ) from error
    return digest.hexdigest()


def _program(stage: Stage, problem: Problem, size: int) -> str:
    """Return the digest of what one stage runs on a batch."""
    arrays = (problem.x, stage.y, problem.logits, np.zeros(1, np.int32))
    arrays = (*arrays, stage.keys, stage.goal_y)
    batch = jax.tree.map(lambda a: _type(a, size), arrays)
    threat = problem.threat_of(np.zeros(size, np.int64))
    attack = stage.attack

    def first_step(model, threat, x, y, logits, item, keys, goal_y):
        del goal_y
        state = attack.init_item(x, y, logits, item, threat=threat, keys=keys)
        model = fast_convolutions(model)
        return state, stage.inner.step(model, state, threat=threat)

    def whole(model, threat, x, y, logits, item, keys, goal_y):
        del logits, item
        x_adv = attack.run(model, x, y, threat, keys)
        logits = predictions.wide(model(x_adv))
        return x_adv, losses.is_broken(stage.goal, logits, goal_y)

    run = first_step if stage.is_queued else whole
    lengths = []
    if stage.is_queued:  # what the host does with the steps
        num_items = attack.num_items(problem.logits.shape[1])
        lengths = [stage.inner.num_calls, num_items]
    digest = program_digest(run, problem.logits_fn, threat, *batch)
    return f"{digest} {lengths}"


def _type(array: Any, size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype)


def _data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if batching.is_keys(leaf) else leaf


def _text(value: Any) -> bytes:
    text = json.dumps(value, default=str, sort_keys=True)
    return _ADDRESS.sub("", text).encode()


_ADDRESS = re.compile(r"0x[0-9a-f]+")  # of functions, other in every process
