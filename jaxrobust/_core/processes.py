"""What several processes (`jax.distributed`) have to agree on; one alone pays nothing.

All of them run the same program and meet in its collective operations. What only one of
them sees (a clock, a file, an error) must not steer it before the others know, or they wait
for each other for ever. What is given to `together` or `first` must not be collective.
"""

import hashlib
import os
import pathlib
import secrets
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.sharding import Mesh

T = TypeVar("T")


def decide(choice: bool) -> bool:
    """Return the choice of process 0, on every process."""
    return choice if jax.process_count() == 1 else bool(_gather(choice)[0])


def together(function: Callable[[], T], doing: str) -> T:
    """Call a function on every process and wait for all; one's error is an error on all."""
    if jax.process_count() == 1:
        return function()
    result, error = None, None
    try:
        result = function()
    except Exception as caught:
        error = caught
    failed = np.flatnonzero(_gather(error is not None))
    if error is not None:
        raise error
    if len(failed):
        raise RuntimeError(
            f"{doing} failed on process {failed[0]}; its own error says why."
        )
    return cast(T, result)


def first(function: Callable[[], Any], doing: str) -> None:
    """Call a function on process 0 alone; the others wait until it is done."""
    is_first = jax.process_index() == 0
    together(function if is_first else lambda: None, doing)


def check_path(name: str, path: Any, mesh: Mesh | None) -> None:
    """Raise, on every process, unless all of them take part in what `path` is for."""
    count = jax.process_count()
    if count == 1:
        return
    here = set() if mesh is None else {d.process_index for d in mesh.devices.flat}
    if len(here) < count:
        if path is None:
            return  # each process by itself
        raise ValueError(
            f"{name} on {count} processes needs a mesh over the devices of all of them: "
            f"pass mesh=jax.make_mesh((jax.device_count(),), ('batch',)), or no {name}."
        )
    is_given = _gather(path is not None)
    if is_given.any() and not is_given.all():
        raise ValueError(
            f"{name} is given on some processes only: pass the same path on all, "
            "process 0 alone writes there."
        )


def check_shared(path: pathlib.Path) -> None:
    """Raise, on every process, unless all see what process 0 writes beside `path`."""
    if jax.process_count() == 1:
        return
    # A new name: of an old one a network file system may still know that it was absent.
    number = int(_gather(secrets.randbits(31))[0])
    probe = path.with_name(f".{path.name}.{number:x}")
    first(probe.touch, f"writing beside {path}")
    is_seen = _gather(os.path.exists(probe)) == 1
    first(lambda: probe.unlink(missing_ok=True), f"writing beside {path}")
    _check_all(is_seen, path)


def check_same(path: pathlib.Path) -> None:
    """Raise, on every process, unless all see the same file at `path`, or all none."""
    if jax.process_count() == 1:
        return
    digest = together(lambda: _digest(path), f"reading {path}")
    digests = _gather(np.frombuffer(digest, np.int32))
    _check_all((digests == digests[0]).all(-1), path)


def _check_all(agrees: np.ndarray, path: pathlib.Path) -> None:
    if not agrees.all():
        raise ValueError(
            f"{path}: processes {np.flatnonzero(~agrees).tolist()} do not see what process "
            "0 sees there. Give a path on a file system that all processes share, the "
            "same on each of them."
        )


def _digest(path: pathlib.Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except FileNotFoundError:
        return bytes(hashlib.sha256().digest_size)


def _gather(value: Any) -> np.ndarray:
    """Return the small value of each process, `[num_processes, ...]`."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.asarray(value, np.int32)))
