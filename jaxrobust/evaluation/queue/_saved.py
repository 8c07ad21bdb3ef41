"""The state file of an evaluation: a killed run goes on where it was saved.

Everything between two rounds is in it, the attack's state in every slot included, so that
the resumed run takes the steps that the uninterrupted one would have taken. Of several
processes all read it, and process 0 alone writes, when its clock says so.
"""

import dataclasses
import json
import os
import pathlib
import time
import zipfile
import zlib
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust._core import batching, files, processes
from jaxrobust._core.checks import warn_user
from jaxrobust._core.lock import Lock
from jaxrobust.evaluation.queue import _slots
from jaxrobust.evaluation.queue._problem import Found, Points, Problem, Stage
from jaxrobust.evaluation.queue._slots import Slots
from jaxrobust.evaluation.report import storable

_FORMAT = "jaxrobust-evaluation-4"

# What reading a file may raise that is none of ours.
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass
class Saved:
    """What a state file holds.

    Attributes:
      number: The stage that was running.
      slots: Its slots; None where the stage had not begun. Of a stage that runs in
        batches, those who wait.
      points: What it had returned.
      found: What the stages before it had found; the counts are of all.
      alone: Which examples each stage broke `[num_stages, N]`.
      margins: What each stage has left `[num_stages, N]`, the largest wrong logit less the
        label's; -inf where it has not attacked.
    """

    number: int
    slots: Slots | None
    points: Points
    found: Found
    alone: np.ndarray
    margins: np.ndarray


class StateFile:
    """Writes a state file every so often; does nothing without a path.

    A context manager: inside, no other evaluation may use the path.

    Attributes:
      is_kept: Whether it stays, with all that was found, when the evaluation has ended.
    """

    def __init__(self, path: str | os.PathLike | None, fingerprint: str, every: float):
        """Save to `path`, no more often than `every` seconds."""
        self.path = None if path is None else pathlib.Path(path)
        self._fingerprint, self._every = fingerprint, every
        self._last = time.monotonic()
        self._lock = None if self.path is None else Lock(self.path)
        self.is_kept = False

    def __enter__(self) -> "StateFile":
        """Make the directory, and see that nobody else is writing there."""
        path, lock = self.path, self._lock
        if path is not None and lock is not None:

            def prepare() -> None:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock.acquire()

            processes.first(prepare, f"preparing {path}")
            processes.check_shared(path)
        return self

    def __exit__(self, *_: object) -> None:
        """Let others use the path."""
        if self._lock is not None:
            self._lock.release()

    def save(self, saved: Saved, problem: Problem, *, now: bool = False) -> None:
        """Write whole or not at all, if it is time; a full disk is no reason to stop."""
        if self.path is None:
            return
        is_time = now or time.monotonic() - self._last >= self._every
        if not processes.decide(is_time):
            return
        arrays = _to_arrays(saved, problem.placing) | {"logits": problem.logits}
        meta = {
            "format": _FORMAT,
            "fingerprint": self._fingerprint,
            "number": saved.number,
            "counts": saved.found.counts,
        }
        arrays["meta"] = np.array(json.dumps(meta))
        path = self.path
        processes.first(lambda: _try_to_write(path, arrays), f"writing {path}")
        self._last = time.monotonic()

    def load(self, problem: Problem, stages: Any) -> Saved | None:
        """Return what was saved, or None where nothing was.

        Raises:
          ValueError: If the file is not one, or is that of another evaluation.
        """
        if self.path is None:
            return None
        processes.check_same(self.path)
        read = processes.together(lambda: self._read(problem), f"reading {self.path}")
        return None if read is None else _from_arrays(*read, problem, stages)

    def _read(self, problem: Problem) -> tuple[dict[str, np.ndarray], Any] | None:
        """Return the arrays and what is said of them, after checking both."""
        if self.path is None or not os.path.lexists(self.path):
            return None
        advice = "give another state_file, or remove it to begin again."
        try:
            arrays, meta = _parse(self.path)
        except _UNREADABLE as error:
            raise ValueError(
                f"{self.path} is not a state file of an evaluation ({error}): {advice}"
            ) from error
        if meta.get("format") != _FORMAT:
            raise ValueError(
                f"{self.path} has format {meta.get('format')!r}, this version reads "
                f"{_FORMAT!r}: {advice}"
            )
        missing = {*_NEEDED} - {*arrays, *meta}
        if missing:
            raise ValueError(
                f"{self.path} is not a whole state file, {sorted(missing)} are missing: "
                f"{advice}"
            )
        # Another program or machine rounds logits differently.
        logits = arrays.pop("logits")
        is_same = logits.shape == problem.logits.shape and np.allclose(
            logits, problem.logits, rtol=1e-3, atol=1e-3, equal_nan=True
        )
        if meta["fingerprint"] != self._fingerprint or not is_same:
            raise ValueError(
                f"{self.path} belongs to another evaluation (another model, gradient, "
                f"data, attack, threat, key, batch size or version): {advice}"
            )
        return arrays, meta

    def end(self) -> None:
        """Remove the file of an evaluation that has ended, unless it is kept."""
        if self.path is not None and not self.is_kept:
            remove(self.path)


def remove(path: pathlib.Path) -> None:
    """Remove a state file that is of no use any more."""
    processes.first(lambda: _try_to_remove(path), f"removing {path}")


def _parse(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of a state file and what is said of them."""
    with path.open("rb") as file:  # NumPy does not close a damaged one
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        arrays = dict(archive)
    meta = json.loads(str(arrays.pop("meta")))
    if not isinstance(meta, dict):
        raise ValueError("its meta is not a dictionary")
    return arrays, meta


def _try_to_write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        with files.replaced(path) as file:
            cast(Any, np.savez)(file, **arrays)
    except OSError as error:
        warn_user(
            f"{path} could not be written ({error}): the evaluation goes on and tries "
            "again at the next saving. If it is killed before that, what was found since "
            "the last saving is lost."
        )


def _try_to_remove(path: pathlib.Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        warn_user(
            f"{path} could not be removed ({error}): the evaluation has ended, remove it."
        )


_POINTS = ("x_adv", "loss", "is_broken")
_FOUND = ("x_adv", "worth", "broken_by")
_SLOTS = ("rows", "items", "steps", "waiting")
_NEEDED = ("alone", "margins", "logits", "fingerprint", "number", "counts")
_NEEDED += tuple(f"points.{field}" for field in _POINTS)
_NEEDED += tuple(f"found.{field}" for field in _FOUND)


def _to_arrays(saved: Saved, placing: Any) -> dict[str, np.ndarray]:
    arrays = {"alone": saved.alone, "margins": saved.margins}
    for name in _POINTS:
        arrays[f"points.{name}"] = storable(getattr(saved.points, name))
    for name in _FOUND:
        arrays[f"found.{name}"] = storable(getattr(saved.found, name))
    if saved.slots is not None:
        arrays |= {f"slots.{name}": getattr(saved.slots, name) for name in _SLOTS}
        leaves = map(_plain, jax.tree.leaves(saved.slots.state))
        for i, leaf in enumerate(placing.fetch(list(leaves))):
            arrays[f"state.{i}"] = leaf
    return arrays


def _from_arrays(arrays, meta, problem: Problem, stages: list[Stage]) -> Saved:
    def read(name: str, fields: tuple[str, ...]) -> list[np.ndarray]:
        x_adv, *rest = (arrays[f"{name}.{field}"] for field in fields)
        return [x_adv.astype(problem.x.dtype), *rest]

    slots = None
    if "slots.rows" in arrays:
        slots = Slots(*(arrays[f"slots.{name}"] for name in _SLOTS), state=None)
    if slots is not None and len(slots.rows):
        fresh = _slots.start(stages[meta["number"]], problem, slots)
        leaves, structure = jax.tree.flatten(fresh)
        saved = [arrays[f"state.{i}"] for i in range(len(leaves))]
        placed = map(problem.placing.spread, map(_like, saved, leaves))
        slots.state = jax.tree.unflatten(structure, placed)
    points = Points(*read("points", _POINTS))
    found = Found(*read("found", _FOUND), counts=meta["counts"])
    lines = arrays["alone"], arrays["margins"]
    return Saved(meta["number"], slots, points, found, *lines)


def _plain(leaf: jax.Array) -> jax.Array:
    """Return keys as their data."""
    if batching.is_keys(leaf):
        return jax.random.key_data(leaf)
    return storable(leaf)


def _like(saved: np.ndarray, leaf: jax.Array) -> Any:
    if batching.is_keys(leaf):
        return jax.random.wrap_key_data(
            jnp.asarray(saved), impl=jax.random.key_impl(leaf)
        )
    return jnp.asarray(saved, leaf.dtype)
