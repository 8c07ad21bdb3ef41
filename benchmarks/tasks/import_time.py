"""What `import jaxrobust` costs beyond JAX and Optax; the peers, beyond torch."""

import json
import subprocess
import sys
from collections.abc import Callable

from benchmarks.task import OURS, Options, Outcome, Problem, Side, Task, at_most

CPU = "user and system time, s"
_CODE = """
import json, resource, time
import {first}
def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
begin, begin_cpu = time.perf_counter(), cpu()
import {then}
seconds, cpu_seconds = time.perf_counter() - begin, cpu() - begin_cpu
from benchmarks import memory
print(json.dumps([seconds, cpu_seconds, memory.peak_bytes()]))
"""


def _import(first: str, then: str) -> Callable[[Problem], Side]:
    """Return the side that times `import then` in a fresh process, after `first`."""
    code = _CODE.format(first=first, then=then)

    def run() -> list[float]:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    def describe(measured: list[float]) -> Outcome:
        seconds, cpu_seconds, peak = measured
        return Outcome(
            seconds=seconds,
            compile_seconds=0.0,
            figures={CPU: cpu_seconds},
            peak_bytes=int(peak),
        )

    return lambda problem: Side(run, describe)


def _prepare(options: Options) -> Problem:
    del options
    return Problem({}, {})


TASKS = [
    Task(
        "import",
        "import, beyond JAX and Optax or torch",
        _prepare,
        {
            OURS: _import("jax, optax", "jaxrobust"),
            "torchattacks": _import("torch", "torchattacks"),
            "foolbox-torch": _import("torch", "foolbox"),
        },
        (at_most(0.2),),
    )
]
