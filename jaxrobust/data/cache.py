"""Arrays that are slow to make, kept in one file."""

import os
import pathlib
import warnings
import zipfile
from collections.abc import Callable

import numpy as np

from jaxrobust._core import files

Arrays = dict[str, np.ndarray]


def default_cache_dir() -> pathlib.Path:
    """Return $JAXROBUST_CACHE_DIR, else the user's cache directory for jaxrobust."""
    if directory := os.environ.get("JAXROBUST_CACHE_DIR"):
        return pathlib.Path(directory).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "jaxrobust"


def cached(path: pathlib.Path, build: Callable[[], Arrays]) -> Arrays:
    """Read the arrays at `path`; where that fails, build them and write them there.

    The file is an uncompressed .npz: one file can be replaced atomically, and its
    checksums catch a damaged one, which is built again. Where nothing can be written, a
    warning says so and the arrays are returned all the same.

    Args:
      path: A file that need not exist, ending in .npz; it must name its content fully.
      build: Makes the arrays.

    Returns:
      What `build` returns or once returned.
    """
    try:
        return _read(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        warnings.warn(f"Rebuilding the cache {path}: {error}", stacklevel=2)
    arrays = build()
    try:
        _write(path, arrays)
    except OSError as error:
        warnings.warn(
            f"Cannot write the cache {path}: {error}. The data will be decoded again "
            "next time; set JAXROBUST_CACHE_DIR to a writable directory.",
            stacklevel=2,
        )
    return arrays


def _read(path: pathlib.Path) -> Arrays:
    # A damaged archive is not closed by NumPy.
    with path.open("rb") as file, np.load(file) as archive:
        return {name: archive[name] for name in archive.files}


def _write(path: pathlib.Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replaced(path) as file:
        np.savez(file, allow_pickle=False, **arrays)
