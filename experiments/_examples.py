"""The examples that a checkpoint is attacked on: of a data set, or the user's own."""

import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

import jaxrobust as jr
from jaxrobust.data import Dataset


class Examples(NamedTuple):
    """What is attacked: inputs as the model takes them, and their labels."""

    name: str
    x: Any
    y: Any
    class_names: tuple[str, ...] | None = None


def of_test_set(data: Dataset) -> Examples:
    """Return the test images of a data set, in [0, 1]."""
    return Examples(data.name, data.images(data.x_test), data.y_test, data.class_names)


def of_checkpoint(config: Any, metadata: Mapping[str, Any]) -> Examples:
    """Return the examples that the command line asks for.

    `--data FILE` and `--dataset NAME` come before the data set that the checkpoint says it
    was trained on.

    Raises:
      ValueError: If none of the three says which examples, with advice.
    """
    if config.data is not None and config.dataset is not None:
        raise ValueError("--data and --dataset: give one of them.")
    if config.data is not None:
        return from_file(config.data, config.num_test)
    name = config.dataset or metadata.get("dataset")
    own = (
        "For a model trained on your own data give --data FILE.npz, with its test "
        "examples as x [N, ...], floats as the model takes them, and y [N], integers"
    )
    known = ", ".join(jr.data.NAMES)
    if name is None:
        raise ValueError(
            f"{config.checkpoint} does not say which data set it was trained on. {own}; "
            f"otherwise --dataset, one of {known}."
        )
    if name not in jr.data.NAMES:
        whose = "--dataset" if config.dataset else f"{config.checkpoint} was trained on"
        raise ValueError(
            f"{whose} {name!r}, which is none of {known}. {own}; otherwise --dataset."
        )
    data = jr.data.load(name, data_dir=config.data_dir)
    return of_test_set(data.subset(None, config.num_test))


def from_file(path: pathlib.Path, num: int | None = None) -> Examples:
    """Read the first `num` examples of an npz file with x and y; all by default."""
    needed = "needed is an .npz file with arrays x and y: numpy.savez(FILE, x=x, y=y)"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"--data {path}: there is no such file.") from None
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"--data {path} cannot be read ({error}); {needed}."
        ) from error
    if not {"x", "y"} <= arrays.keys():
        raise ValueError(f"--data {path} holds {sorted(arrays)}; {needed}.")
    x, y = arrays["x"][:num], arrays["y"][:num]
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"--data {path}: x is {x.dtype}; floats as the model takes them are needed: "
            "(x / 255).astype(numpy.float32), if it was trained on pixels so scaled."
        )
    return Examples(path.stem, x, y)
