"""Arrays and JSON in a directory, written atomically.

    PATH/ITEM/              Orbax arrays, name -> array; there may be several items
    PATH/checkpoint.json    format, shapes of the arrays, checksums, versions, ...

A checkpoint is written under a temporary name and then renamed: whoever is killed
meanwhile leaves the earlier one.
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from jaxrobust._core import batching
from jaxrobust._core.versions import LIBRARIES, versions

FORMAT = "jaxrobust-checkpoint-1"
_INFO = "checkpoint.json"


def write(
    path: str | os.PathLike,
    items: Mapping[str, Mapping[str, np.ndarray]],
    info: Mapping[str, Any],
) -> None:
    """Write a checkpoint of several named items of arrays, atomically."""
    path = Path(path).absolute()
    # One name for all writes: what a killed one leaves, the next one removes.
    earlier, temporary = _earlier(path), _temporary(path)
    if path.exists():
        read_info(path)  # what is not a checkpoint is not ours to replace
        # Left from a write that was killed while it deleted this.
        shutil.rmtree(earlier, ignore_errors=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with _checkpointer() as checkpointer:
        for name, arrays in items.items():
            checkpointer.save(temporary / name, dict(arrays))
            checkpointer.wait_until_finished()
    own = {
        "format": FORMAT,
        "versions": versions((*LIBRARIES, "orbax-checkpoint")),
        "arrays": {name: _shapes(arrays) for name, arrays in items.items()},
        "crc32": {name: _checksum(arrays) for name, arrays in items.items()},
        "files": {name: _files(temporary / name) for name in items},
    }
    info = own | dict(info)
    (temporary / _INFO).write_text(json.dumps(info, indent=1))
    # A directory cannot replace another in one call. Killed between the two renames,
    # the complete earlier one is left under its second name, where readers look too.
    if path.exists():
        path.rename(earlier)
    temporary.rename(path)
    shutil.rmtree(earlier, ignore_errors=True)


def info_file(path: str | os.PathLike) -> Path:
    """Return the file that tells one checkpoint at `path` from another."""
    path = Path(path).absolute()
    return (_existing(path) or path) / _INFO


def exists(path: str | os.PathLike) -> bool:
    """Return whether anything is at `path`, or was before a write was interrupted."""
    return _existing(Path(path).absolute()) is not None


def remove(path: str | os.PathLike) -> None:
    """Remove a checkpoint, if there is one; what is none is not touched."""
    path = Path(path).absolute()
    doomed = _temporary(path)
    while (existing := _existing(path)) is not None:
        read_info(path)
        shutil.rmtree(doomed, ignore_errors=True)
        existing.rename(doomed)  # at once, where deleting is not
        shutil.rmtree(doomed)


def read_info(path: str | os.PathLike) -> dict[str, Any]:
    """Return `checkpoint.json`, or raise the error that says why there is none."""
    path = Path(path).absolute()
    directory = _existing(path)
    if directory is None:
        raise FileNotFoundError(
            f"there is no checkpoint at {path}. Give the path of one, for example "
            "the directory `best` below the output directory of a training run."
        )
    if not (directory / _INFO).is_file():
        run = [name for name in ("best", "last") if (directory / name / _INFO).exists()]
        hint = f"Did you mean {path / run[0]}?" if run else f"It has no {_INFO}."
        raise ValueError(f"{path} is not a jaxrobust checkpoint. {hint}")
    try:
        info = json.loads((directory / _INFO).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        found = info.get("format") if isinstance(info, dict) else type(info).__name__
        raise ValueError(
            f"{path} is not a checkpoint that this version of jaxrobust reads: its "
            f"format is {found!r}, needed is {FORMAT!r}. Train again, or use the "
            "version that wrote it."
        )
    return info


def read_arrays(path: str | os.PathLike, item: str) -> dict[str, np.ndarray]:
    """Read the arrays of one item, name -> array."""
    path = Path(path).absolute()
    info = read_info(path)
    shapes = info["arrays"].get(item)
    if shapes is None:
        raise ValueError(f"{path} holds no {item!r} arrays; it is not a run's `last`.")
    _check_files(path, item, info)
    try:
        with _checkpointer() as checkpointer:
            targets = {name: _empty(shape) for name, shape in shapes.items()}
            arrays = checkpointer.restore((_existing(path) or path) / item, targets)
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise _damaged(path, error) from error
    if _checksum(arrays) != info["crc32"][item]:  # changed bits pass through Orbax
        raise _damaged(path, ValueError("the checksum is wrong"))
    return arrays


def to_arrays(
    tree: Any, fetch: Callable[[Any], Any] = jax.device_get
) -> dict[str, np.ndarray]:
    """Fetch a pytree to the host as name -> array; keys become their data.

    `fetch` is called once for each array, on several processes by all of them.
    """
    named = _named(nnx.as_pure(tree))
    return {name: np.asarray(fetch(leaf)) for name, leaf in named.items()}


def check_architecture(path: str | os.PathLike, item: str, *trees: Any) -> None:
    """Raise unless an item of a checkpoint has the arrays of these trees."""
    needed = {}
    for tree in trees:
        needed |= _shapes(_named(nnx.as_pure(tree)))
    _check_architecture(path, needed, read_info(path)["arrays"][item])


def from_arrays(path: str | os.PathLike, tree: Any, arrays: dict[str, Any]) -> Any:
    """Return the pytree with the arrays of a checkpoint, placed on the device.

    What is spread over several devices in `tree` is spread again.
    """
    pure = nnx.as_pure(tree)
    _check_architecture(path, _shapes(_named(pure)), _shapes(arrays))

    def restore(path, leaf):
        array = _place(arrays[_name(path)], _plain(leaf))
        if batching.is_keys(leaf):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
        return array

    return jax.tree_util.tree_map_with_path(restore, pure)


def _named(tree: Any) -> dict[str, Any]:
    """Return the leaves, name -> array."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): _plain(leaf) for path, leaf in leaves}


def _plain(leaf: Any) -> Any:
    """Return keys as their data."""
    if batching.is_keys(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _place(array: np.ndarray, like: Any) -> jax.Array:
    is_spread = isinstance(like, jax.Array) and len(like.sharding.device_set) > 1
    return jax.device_put(array, like.sharding) if is_spread else jnp.array(array)


def _check_architecture(
    path: str | os.PathLike, needed: dict[str, str], saved: dict[str, str]
) -> None:
    names = sorted(needed.keys() | saved.keys())
    wrong = [n for n in names if needed.get(n) != saved.get(n)]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"the checkpoint {path} holds another architecture: {name!r} is "
            f"{saved.get(name, 'absent')} there and {needed.get(name, 'absent')} in "
            f"the model ({len(wrong)} of {len(names)} arrays differ). Give the model "
            "that was trained, or the checkpoint that belongs to this one."
        )


def _shapes(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Return name -> "float32[3,4]"."""
    return {
        name: f"{array.dtype}[{','.join(map(str, array.shape))}]"
        for name, array in arrays.items()
    }


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(arrays[name].tobytes(), crc)
    return crc


def _files(directory: Path) -> dict[str, list[int]]:
    """Return the size and the checksum of each file below a directory."""
    names = sorted(p for p in directory.rglob("*") if p.is_file())
    return {p.relative_to(directory).as_posix(): _size_and_crc(p) for p in names}


def _size_and_crc(path: Path) -> list[int]:
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]


def _check_files(path: Path, item: str, info: Mapping[str, Any]) -> None:
    """Raise where a file is not as it was written.

    Orbax would find that out in threads of its own, each of which prints a traceback.
    """
    directory = (_existing(path) or path) / item
    for name, expected in info.get("files", {}).get(item, {}).items():
        file = directory / name
        try:
            found = _size_and_crc(file)
        except OSError as error:
            raise _damaged(path, error) from error
        if found != expected:
            wrong = "checksum is wrong" if found[0] == expected[0] else "size is wrong"
            raise _damaged(path, ValueError(f"{item}/{name}: the {wrong}"))


def _checkpointer() -> ocp.StandardCheckpointer:
    """Return one that waits for no other process: the caller says who writes."""
    process = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f"process{process}",
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _empty(shape: str) -> np.ndarray:
    dtype, dims = shape.rstrip("]").split("[")
    return np.empty([int(dim) for dim in dims.split(",") if dim], jnp.dtype(dtype))


def _earlier(path: Path) -> Path:
    return path.with_name(f"{path.name}.old")


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")


def _existing(path: Path) -> Path | None:
    return next((p for p in (path, _earlier(path)) if p.exists()), None)


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"the checkpoint {path} is unreadable or incomplete ({type(error).__name__}: "
        f"{str(error)[:200]}). Use another one, or delete it and train again."
    )
