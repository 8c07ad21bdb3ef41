"""Models on disk: arrays, and beside them what is needed to build the model again."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from jaxrobust._core.representation import concise
from jaxrobust.training import interrupts, storage


@dataclasses.dataclass(frozen=True, repr=False)
class Checkpoints:
    """Where and how often a run is saved: `fit(out=Checkpoints("out/run", every=100))`.

    Args:
      directory: The output directory; on several processes, on a file system that all of
        them see. Process 0 alone writes there. None: nothing is written.
      every: Steps between two savings; by default an epoch.
      metadata: JSON values for the checkpoints; see `save_checkpoint`. A run is
        resumed with the same metadata only.
      resume: Whether to continue what is in the directory; False replaces it.

    Raises:
      ValueError: If `every` is no whole number of at least 1.

    Example:
      >>> print(Checkpoints("out/run", every=100))
      Checkpoints('out/run', every=100)
    """

    directory: str | os.PathLike | None
    every: int | None = None
    metadata: Mapping[str, Any] | None = None
    resume: bool = True

    __repr__ = concise

    def __post_init__(self):
        if self.every is None or (isinstance(self.every, int) and self.every >= 1):
            return
        raise ValueError(
            f"Checkpoints(every={self.every!r}): a whole number of steps of at least 1 is "
            "needed, or None for an epoch."
        )


def save_checkpoint(
    path: str | os.PathLike, model: nnx.Module, metadata: Mapping[str, Any]
) -> None:
    """Save a model and what is needed to build it again.

    Args:
      path: the directory to write; an earlier checkpoint there is replaced.
      model: any Flax NNX module.
      metadata: values that JSON can hold. `metadata["model"]` has the arguments of
          `jaxrobust.models.create`: name, input_shape, num_classes and others;
          the rest (dataset, recipe) is free. Versions are recorded by themselves.

    Raises:
      TypeError: where the metadata cannot be written as JSON.
      ValueError: where `path` exists and is not a checkpoint.

    Example:
      >>> import tempfile
      >>> from flax import nnx
      >>> path = tempfile.mkdtemp() + "/linear"
      >>> save_checkpoint(path, nnx.Linear(4, 2, rngs=nnx.Rngs(0)), {"epochs": 3})
      >>> template = nnx.Linear(4, 2, rngs=nnx.Rngs(1))
      >>> model, metadata = load_checkpoint(path, template)
      >>> metadata["epochs"]
      3
    """
    arrays = storage.to_arrays(nnx.split(model)[1])
    with interrupts.uninterrupted():
        storage.write(path, {"model": arrays}, {"metadata": to_json(metadata)})


def load_checkpoint(
    path: str | os.PathLike, model: nnx.Module | None = None
) -> tuple[nnx.Module, dict[str, Any]]:
    """Load a model, in evaluation mode, and its metadata.

    Args:
      path: a checkpoint directory, such as `best` or `last` of a training run.
      model: a module of the saved architecture; it is not changed. Needed only for
          an architecture that `jaxrobust.models.create` does not know.

    Returns:
      The model with the saved arrays, and the metadata, whose entry "versions"
      names the libraries that saved it; one that was not installed is not in it.

    Raises:
      FileNotFoundError: where nothing is at `path`.
      ValueError: where it is not a checkpoint, damaged, or of another architecture.

    Example:
      >>> import tempfile
      >>> import jaxrobust as jr
      >>> path = tempfile.mkdtemp() + "/mlp"
      >>> spec = {"name": "mlp", "input_shape": (2, 2, 1), "num_classes": 3, "seed": 0}
      >>> save_checkpoint(path, jr.models.create(**spec), {"model": spec})
      >>> model, metadata = load_checkpoint(path)  # it knows its architecture
      >>> metadata["model"]["name"]
      'mlp'
    """
    info = storage.read_info(path)
    metadata = dict(info["metadata"], versions=info["versions"])
    if model is None:
        model = _create(path, metadata.get("model"))
    arrays = storage.read_arrays(path, "model")
    graph, state = nnx.split(nnx.clone(model))
    model = nnx.merge(graph, storage.from_arrays(path, state, arrays))
    model.eval()
    return model, metadata


def prepare_out(path: str | os.PathLike) -> Path:
    """Make the output directory and try to write to it, before any work.

    Raises:
      OSError: (or the subclass that fits) where it cannot be made or written.

    Example:
      >>> import tempfile
      >>> prepare_out(tempfile.mkdtemp() + "/run").name
      'run'
    """
    path = Path(path).absolute()
    probe = path / f".write-test-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)  # another host's process may have this number
    except OSError as error:
        raise type(error)(
            f"cannot write to the output directory {path}: {error.strerror}. "
            "Choose another directory, or make this one writable."
        ) from error
    return path


def to_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata as JSON gives them back (tuples become lists)."""
    try:
        return json.loads(json.dumps(dict(metadata)))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"metadata must hold strings, numbers, lists and dicts only: {error}. "
            "Convert arrays with .tolist() and other objects with repr()."
        ) from error


def _create(path: str | os.PathLike, spec: Mapping[str, Any] | None) -> nnx.Module:
    if not spec or not {"name", "input_shape"} <= spec.keys():
        raise ValueError(
            f"the checkpoint {path} does not say which model it holds (its metadata "
            f"give model={spec!r}). Give a module of its architecture: "
            "load_checkpoint(path, model)."
        )
    from jaxrobust import models

    spec = dict(spec, input_shape=tuple(spec["input_shape"]))
    return models.create(spec.pop("name"), **spec)
