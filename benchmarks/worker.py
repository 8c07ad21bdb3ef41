"""The process of one side of one task: it runs when it is told to, and else sleeps.

Started by `benchmarks.turns` as `python -m benchmarks.worker MODULE TASK SIDE DIRECTORY`.
Every line "run" on its standard input is answered by one line of JSON.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import sys
import time
from typing import Any, TextIO

from benchmarks import memory, peers
from benchmarks.task import Problem, Side


def main(arguments: list[str]) -> None:
    """Build the side, then run it once for every line "run" that is read."""
    module, task, side, directory = arguments
    with _answers() as answers:
        tasks = importlib.import_module(module).TASKS
        _use_all_cores(side)
        problem = Problem.load(pathlib.Path(directory))
        built = tasks[task].sides[side](problem)
        _answer(answers, {"ready": True})
        for line in sys.stdin:
            if line.strip() == "run":
                _answer(answers, _measure(built))


@contextlib.contextmanager
def _answers() -> Any:
    """Keep the standard output for answers; what libraries print goes to the errors."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        yield answers


def _answer(answers: TextIO, value: dict[str, Any]) -> None:
    print(json.dumps(value), file=answers, flush=True)


def _measure(side: Side) -> dict[str, Any]:
    begin, begin_cpu = time.perf_counter(), time.process_time()
    returned = side.run()
    seconds, cpu_seconds = (
        time.perf_counter() - begin,
        time.process_time() - begin_cpu,
    )
    # Before `describe`, which may evaluate the model once more.
    peak = memory.peak_bytes()
    outcome = dataclasses.asdict(side.describe(returned))
    measured = {
        "seconds": seconds,
        "wall_seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak,
    }
    return measured | {k: v for k, v in outcome.items() if v is not None}


def _use_all_cores(side: str) -> None:
    """Give torch the cores that JAX takes by itself."""
    if "torch" in peers.NEEDS.get(side, ()):
        import torch

        torch.set_num_threads(peers.num_cores())


if __name__ == "__main__":
    main(sys.argv[1:])
