"""Files that are replaced as a whole: whoever reads one sees the old or the new."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def replaced(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` at the end of the block.

    After an error `path` is as it was, and nothing is left beside it; after the end of the
    machine, too, what is there is whole. Whoever is killed leaves a file `path.*.tmp`.

    Raises:
      OSError: Where it cannot be written.

    Example:
      >>> import tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "notes.txt"
      >>> with replaced(path) as file:
      ...     _ = file.write(b"whole")
      >>> path.read_text(), len(list(path.parent.iterdir()))
      ('whole', 1)
    """
    # A name of its own: whoever else writes here does not find it gone.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
