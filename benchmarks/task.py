"""What a benchmark is made of: a task, its problem, its sides, its targets."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

OURS = "jaxrobust"
# What the names of the arrays of a model begin with.
WEIGHTS = "weights/"


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user chose and a task may need to prepare its problem."""

    quick: bool = False
    data_dir: pathlib.Path | None = None
    checkpoints: pathlib.Path | None = None
    weights: pathlib.Path | None = None


class Problem(NamedTuple):
    """What every side is given: numbers (JSON values), data and weights (arrays)."""

    settings: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def save(self, directory: pathlib.Path) -> None:
        """Write both to a directory, for the processes of the sides."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "settings.json").write_text(json.dumps(self.settings))
        # Any: some stubs of numpy take the names of arrays for options of savez.
        arrays: Any = self.arrays
        np.savez(directory / "arrays.npz", **arrays)

    @classmethod
    def load(cls, directory: pathlib.Path) -> "Problem":
        """Read what `save` has written."""
        settings = json.loads((directory / "settings.json").read_text())
        with np.load(directory / "arrays.npz") as arrays:
            return cls(settings, dict(arrays))

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """The arrays of the model by their path, such as "conv1.kernel"."""
        named = self.arrays.items()
        return {n.removeprefix(WEIGHTS): a for n, a in named if n.startswith(WEIGHTS)}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a side says of one run; the clock and the memory are measured outside.

    Attributes:
      gradients: forward and backward passes, counted in examples.
      forwards: forward passes beyond those, counted in examples.
      figures: what else the table should show, by the name of its row.
      seconds: time of the run where the wall clock around it is not what counts.
      compile_seconds: time of compilation, where the run knows it.
      peak_bytes: memory, where the work was done in another process.
    """

    gradients: int | None = None
    forwards: int | None = None
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    compile_seconds: float | None = None
    peak_bytes: int | None = None


class Side(NamedTuple):
    """One library at work: `run()` is timed, `describe(what run returned)` is not."""

    run: Callable[[], Any]
    describe: Callable[[Any], Outcome]


class Target(NamedTuple):
    """What must hold: `is_met(result)` is None where it cannot be judged."""

    text: str
    is_met: Callable[[Mapping[str, Any]], bool | None]


@dataclasses.dataclass(frozen=True)
class Task:
    """A row of the table.

    Attributes:
      name: for the command line.
      title: for the table.
      prepare: makes the problem, once, before any process of a side is started.
      sides: by name, each a function of the problem; jaxrobust is one of them.
      targets: what the figures are held to.
      max_rounds: for tasks that take minutes; 0: the first run, with compilation,
        is what counts.
    """

    name: str
    title: str
    prepare: Callable[[Options], Problem]
    sides: Mapping[str, Callable[[Problem], Side]]
    targets: tuple[Target, ...] = ()
    max_rounds: int | None = None


def at_least(ratio: float, peer: str | None = None) -> Target:
    """Ours must be so many times as fast as `peer`, or as the fastest peer."""

    def is_met(result: Mapping[str, Any]) -> bool | None:
        ratios = {name: r["median"] for name, r in result["ratios"].items()}
        if peer is not None:
            ratios = {name: r for name, r in ratios.items() if name == peer}
        return min(ratios.values()) >= ratio if ratios else None

    return Target(f"{ratio:g} times the speed of {peer or 'the fastest peer'}", is_met)


def gradients_at_most(share: float, peer: str) -> Target:
    """Ours must need at most this share of the gradient evaluations of `peer`."""

    def is_met(result: Mapping[str, Any]) -> bool | None:
        counts = [result["sides"].get(s, {}).get("gradients") for s in (OURS, peer)]
        return None if None in counts else counts[0] <= share * counts[1]

    return Target(f"at most {share:g} of the gradients of {peer}", is_met)


def at_most(seconds: float) -> Target:
    """Ours must take at most so many seconds."""

    def is_met(result: Mapping[str, Any]) -> bool | None:
        ours = result["sides"].get(OURS, {})
        return ours["seconds"] <= seconds if "seconds" in ours else None

    return Target(f"at most {seconds:g} s", is_met)


def agrees(figure: str, tolerance: float) -> Target:
    """Check that a figure is the same on all sides, up to a tolerance in its own units."""

    def is_met(result: Mapping[str, Any]) -> bool | None:
        sides = [s for s in result["sides"].values() if figure in s.get("figures", {})]
        values = [side["figures"][figure] for side in sides]
        # 1e-6: two decimal fractions that differ by the tolerance exactly.
        return np.ptp(values) <= tolerance + 1e-6 if len(values) > 1 else None

    return Target(f"the same {figure} to {tolerance:g}", is_met)
