"""The versions of the libraries, as reports and checkpoints record them."""

import importlib.metadata
from collections.abc import Iterable

# A state file is that of one set of versions (`evaluation/queue/_fingerprint.py`): with one
# more library here no file that was written before can be gone on from.
LIBRARIES = ("jaxrobust", "jax", "jaxlib", "optax", "flax")


def versions(libraries: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Return name -> version; of what is not installed there is no entry.

    Example:
      >>> [*versions(("jax", "no-such-library"))]
      ['jax']
    """
    found = {}
    for name in libraries:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
