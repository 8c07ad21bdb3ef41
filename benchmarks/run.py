"""Speed and memory of jaxrobust, side by side with its peers, in one table.

Command   python -m benchmarks.run --data-dir DIR --checkpoints DIR       (--quick: a try)

Time      about half an hour on 2 cores; --tasks and --rounds make it shorter

Expected  a ratio of at least 1 for each task, see docs/benchmarks.md; the table and
          benchmarks/results/cpu.json
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import tyro

from benchmarks import documentation, peers, table, turns
from benchmarks.task import OURS, Options, Task
from benchmarks.tasks import TASKS
from experiments import _common
from jaxrobust._core.versions import versions

RESULTS = pathlib.Path(__file__).parent / "results"
_PACKAGES = ("jaxlib", "flax", "optax", "numpy")
_PACKAGES += ("torch", "torchattacks", "foolbox", "eagerpy")


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure jaxrobust and its peers in turn; print one table and save it."""

    tasks: tuple[str, ...] = ()
    """Names of tasks; all by default."""
    peers: tuple[str, ...] = tuple(name for name in peers.NEEDS if name != OURS)
    """Whom to compare with; who is not installed is skipped with a line."""
    rounds: int = 7
    """Timed runs of each side, after one that compiles; tasks of minutes take 3."""
    data_dir: pathlib.Path | None = None
    """Where tensorflow-datasets keeps MNIST; default: TFDS_DATA_DIR. Without it the
    tasks that need MNIST are skipped."""
    checkpoints: pathlib.Path | None = None
    """The --out of python -m experiments.robustness_table --dataset mnist, whose
    standard and PGD-trained models are attacked."""
    weights: pathlib.Path | None = None
    """Robust MNIST weights (npz, locuslab/fast_adversarial) where there are no
    checkpoints."""
    against: str | None = None
    """A commit: measure jaxrobust as it was there, in place of the peers; the result
    goes to out/against.json unless --out says where."""
    quick: bool = False
    """Tiny shapes, the digits instead of MNIST, one round: whether it runs at all."""
    out: pathlib.Path | None = None
    """The result; default: benchmarks/results/cpu.json, with --quick out/quick.json.
    Tasks in it that are not measured again stay as they are."""
    docs: bool = False
    """Measure nothing; write the table of docs/benchmarks.md from the saved results."""


def main(
    config: Config,
    tasks: dict[str, Task] = TASKS,
    *,
    module: str = "benchmarks.tasks",
    name: str = "cpu",
) -> dict[str, Any]:
    """Run the tasks; returns what is written, by the names of the tasks."""
    if config.docs:
        documentation.write(RESULTS)
        return {}
    chosen = _chosen(config, tasks)
    options = _options(config)
    out = config.out or _default_out(config, name)
    results = _saved(out)
    with _elsewhere(config.against) as roots:
        available = [] if roots else _available(config)
        for task in chosen:
            sides = [OURS, *(s for s in task.sides if s in available), *roots]
            measured = _measured(config, task, sides, options, module, roots)
            if measured is not None:
                results[task.name] = measured
                _common.write_json(out, {"benchmark": name, "tasks": results})
                _report_failures(task.name, measured)
    _common.console.print(table.terminal(results))
    _common.console.print(f"wrote {out}")
    return results


def _default_out(config: Config, name: str) -> pathlib.Path:
    if config.against is not None:
        return pathlib.Path("out/against.json")
    return pathlib.Path("out/quick.json") if config.quick else RESULTS / f"{name}.json"


@contextlib.contextmanager
def _elsewhere(commit: str | None) -> Iterator[dict[str, pathlib.Path]]:
    """Check a commit out into a directory of its own, for as long as it is measured."""
    if commit is None:
        yield {}
        return
    with tempfile.TemporaryDirectory() as directory:
        tree = pathlib.Path(directory) / "tree"
        git = ["git", "-C", str(pathlib.Path(__file__).parent), "worktree"]
        add = [*git, "add", "--detach", str(tree), commit]
        done = subprocess.run(add, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"--against {commit}: {done.stderr.strip()}")
        try:
            yield {f"jaxrobust at {commit}": tree}
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def _measured(
    config: Config,
    task: Task,
    sides: list[str],
    options: Options,
    module: str,
    roots: dict[str, pathlib.Path],
) -> dict[str, Any] | None:
    """Return a task's result, or None where a task nobody asked for cannot be run."""
    provenance = _provenance()
    begin = time.monotonic()
    with _common.console.status(task.name) as status:
        try:
            result = turns.measure(
                task,
                sides,
                options,
                rounds=1 if config.quick else config.rounds,
                module=module,
                on_turn=lambda text: status.update(f"{task.name}: {text}"),
                roots=roots,
            )
        except (ValueError, OSError) as error:
            if config.tasks:
                raise  # it was asked for by name
            _common.console.print(f"{task.name} skipped: {error}", highlight=False)
            return None
    return result | {
        "quick": config.quick,
        "seconds": round(time.monotonic() - begin),
        "provenance": provenance,
    }


def _chosen(config: Config, tasks: dict[str, Task]) -> list[Task]:
    for given, known, what in (
        (config.tasks, tasks, "task"),
        (config.peers, peers.NEEDS, "peer"),
    ):
        for name in given:
            if name not in known:
                raise ValueError(
                    f"there is no {what} {name!r}: take some of {', '.join(known)}"
                )
    if config.weights is not None and not config.weights.is_file():
        raise ValueError(
            f"--weights {config.weights} is not a file: give the .npz itself, such as "
            f"{config.weights / 'mnist_fast_adversarial_pgd.npz'}"
        )
    if config.checkpoints is not None and not config.checkpoints.is_dir():
        raise ValueError(
            f"--checkpoints {config.checkpoints} is not a directory: give the --out of "
            "python -m experiments.robustness_table --dataset mnist"
        )
    if config.rounds < 1:
        raise ValueError(f"--rounds {config.rounds}: at least 1 is needed")
    return [tasks[name] for name in config.tasks or tasks]


def _options(config: Config) -> Options:
    data_dir = config.data_dir
    if data_dir is None and "TFDS_DATA_DIR" in os.environ:
        data_dir = pathlib.Path(os.environ["TFDS_DATA_DIR"])
    return Options(config.quick, data_dir, config.checkpoints, config.weights)


def _available(config: Config) -> list[str]:
    """Return the peers that are installed, and say how to install the others."""
    available = []
    for peer in config.peers:
        missing = peers.missing(peer)
        if missing:
            _common.console.print(
                f"{peer} skipped: {', '.join(missing)} not installed; "
                f"{peers.HOW_TO_INSTALL}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        else:
            available.append(peer)
    return available


def _saved(out: pathlib.Path) -> dict[str, Any]:
    return json.loads(out.read_text())["tasks"] if out.is_file() else {}


def _provenance() -> dict[str, Any]:
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return _common.provenance() | {
        "versions": versions(_PACKAGES),
        "load_before": load,
    }


def _report_failures(name: str, result: dict[str, Any]) -> None:
    for side, measured in result["sides"].items():
        if "failed" in measured:
            _common.console.print(
                f"{name}: {side} failed: {measured['failed']}",
                highlight=False,
                markup=False,
            )


if __name__ == "__main__":
    with _common.friendly_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.run", description=__doc__))
