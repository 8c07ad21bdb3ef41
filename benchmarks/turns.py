"""Measure the sides of a task in turn: ours, peer, ours, peer, ...

Each side has a process of its own, kept alive between its turns, so that the peak of
memory is its own and no library's threads, allocator or caches meet another's. Who is
not at turn is blocked on a pipe. Its pools of threads sleep by then: they wait actively
for about a millisecond only.
"""

import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.task import OURS, Options, Task

_ROOT = pathlib.Path(__file__).parent.parent


class WorkerError(RuntimeError):
    """A side could not be built or run; the message says why."""


class Worker:
    """The process of one side, see `benchmarks.worker`.

    With `root`, the directory of another commit, the side is jaxrobust as it was there.
    """

    def __init__(
        self,
        module: str,
        task: str,
        side: str,
        problem: pathlib.Path,
        root: pathlib.Path | None = None,
    ):
        self.side = side
        self._errors = (problem / f"{side}.log").open("w+")
        named = side if root is None else OURS
        command = [sys.executable, "-m", "benchmarks.worker", module, task, named]
        self._process = subprocess.Popen(
            [*command, str(problem)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=root or _ROOT,
        )
        self._read()  # it is ready

    def run(self) -> dict[str, Any]:
        """Run the side once and return what was measured."""
        pipe = self._process.stdin
        assert pipe is not None
        try:
            pipe.write("run\n")
            pipe.flush()
        except BrokenPipeError:
            pass  # `_read` says what has happened
        return self._read()

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._errors.close()

    def _read(self) -> dict[str, Any]:
        pipe = self._process.stdout
        assert pipe is not None
        line = pipe.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        self._errors.close()
        raise WorkerError(lines[-1] if lines else "the process ended without a word")


def measure(
    task: Task,
    sides: Sequence[str],
    options: Options,
    *,
    rounds: int,
    module: str = "benchmarks.tasks",
    on_turn: Callable[[str], None] = lambda text: None,
    roots: Mapping[str, pathlib.Path] | None = None,
) -> dict[str, Any]:
    """Return the result of a task: what each side took, and the ratios to ours.

    `roots` has the directories of the sides that are jaxrobust at another commit.
    """
    rounds = rounds if task.max_rounds is None else min(rounds, task.max_rounds)
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        on_turn("problem")
        problem = task.prepare(options)
        problem.save(directory)
        workers, failed = {}, {}
        runs: dict[str, list[dict[str, Any]]] = {}
        for side in sides:
            on_turn(f"{side}, first run")
            with _noting(failed, side):
                worker = Worker(
                    module, task.name, side, directory, (roots or {}).get(side)
                )
                stack.callback(worker.close)
                runs[side] = [worker.run()]
                workers[side] = worker
        for turn in range(rounds):
            for side, worker in list(workers.items()):
                on_turn(f"{side}, run {turn + 1} of {rounds}")
                with _noting(failed, side):
                    runs[side].append(worker.run())
                if side in failed:
                    del workers[side]
    done = {side: summary(runs[side]) for side in sides if side not in failed}
    result: dict[str, Any] = {
        "title": task.title,
        "settings": problem.settings,
        "rounds": rounds,
        "sides": done | {side: {"failed": why} for side, why in failed.items()},
        "ratios": ratios(done),
    }
    result["targets"] = [
        {"text": target.text, "is_met": _verdict(target.is_met(result))}
        for target in task.targets
    ]
    return result


@contextlib.contextmanager
def _noting(failed: dict[str, str], side: str) -> Iterator[None]:
    try:
        yield
    except WorkerError as error:
        failed[side] = str(error)


def _verdict(is_met: Any) -> bool | None:
    return None if is_met is None else bool(is_met)


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a side took: medians over the runs after the first.

    The first run compiles and warms up: what it took beyond the median is the time of
    compilation, unless the side measures that itself. If it is the only one, it counts.
    """
    first, later = runs[0], runs[1:] or runs

    def median(name: str) -> float:
        return statistics.median(run[name] for run in later)

    if "compile_seconds" in first:
        compile_seconds = statistics.median(run["compile_seconds"] for run in runs)
    else:
        compile_seconds = max(0.0, first["wall_seconds"] - median("wall_seconds"))
    result = {
        "seconds": median("seconds"),
        "compile_seconds": compile_seconds,
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "figures": {
            name: statistics.median(run["figures"][name] for run in later)
            for name in first["figures"]
        },
        "all_seconds": [run["seconds"] for run in later],
        "all_cpu_seconds": [run["cpu_seconds"] for run in later],
    }
    counts = [name for name in ("gradients", "forwards") if name in first]
    return result | {name: round(median(name)) for name in counts}


def ratios(sides: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return, for each peer, its time over ours: above 1, ours is the faster.

    The median of the ratios of turns that followed each other, so that a machine that
    slows down for a while slows both; with the smallest and the largest.
    """
    if OURS not in sides:
        return {}
    ours = sides[OURS]["all_seconds"]
    result = {}
    for name, side in sides.items():
        if name != OURS:
            each = [b / a for a, b in zip(ours, side["all_seconds"], strict=True)]
            result[name] = {
                "median": statistics.median(each),
                "min": min(each),
                "max": max(each),
            }
    return result
