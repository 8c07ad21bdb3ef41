"""How many examples at a time fit into the memory of the devices."""

from typing import Any

import jax
import numpy as np

from jaxrobust.evaluation.queue import _slots, _stages
from jaxrobust.evaluation.queue._problem import Problem, Stage

# The rest is for what lives there beside the program, and for what its figure leaves out.
_SHARE = 0.7


def fitting(stages: list[Stage], problem: Problem, size: int) -> int:
    """Return `size`, or the largest power of two of examples that fits, by the compiler.

    The programs are those that the evaluation runs, so that nothing is compiled twice where
    `size` fits. A device that does not say what memory it has (a CPU) is left alone.
    """
    limit = _limit(problem.placing.mesh)
    if limit is None:
        return size
    least, room = problem.placing.num_devices, _SHARE * limit
    for stage in stages:
        while size > least:
            needed = _needed(stage, problem, size)
            if needed <= room:
                break
            # By the proportion; what does not grow with the batch may ask for less still.
            wanted = min(size - 1, size * room / needed)
            size = least * 2 ** max(0, int(np.log2(max(1, wanted / least))))
    return size


def _limit(mesh: Any) -> int | None:
    """Return the bytes of the device, not those that are free: a resumed run asks again."""
    device = jax.devices()[0] if mesh is None else mesh.local_devices[0]
    return (device.memory_stats() or {}).get("bytes_limit")


def _needed(stage: Stage, problem: Problem, size: int) -> int:
    """Return the bytes on one device while a batch is attacked."""
    rows = np.zeros(size, np.int64)
    if stage.is_queued:
        lowered = _slots.lower(stage, problem, rows)
    else:
        lowered = _stages.lower(stage, problem, rows)
    found: Any = lowered.compile().memory_analysis()
    if found is None:
        return 0
    inputs = found.argument_size_in_bytes + found.output_size_in_bytes
    return inputs - found.alias_size_in_bytes + found.temp_size_in_bytes
