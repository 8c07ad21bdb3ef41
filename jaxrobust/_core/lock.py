"""A lock for a file that one process at a time may write."""

import contextlib
import os
import pathlib
import socket
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl: Any = None


class Lock:
    """Lies beside a file, `NAME.lock`, and says who is writing it.

    The system gives it back when a process dies, however it dies. On file systems
    without locks nothing is locked.
    """

    def __init__(self, path: pathlib.Path):
        """Lock what is at `path`, once `acquire` is called."""
        self._guarded, self._path = path, path.with_name(f"{path.name}.lock")
        self._file: Any = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
          RuntimeError: If another process, or another thread, holds it.
        """
        if fcntl is None:
            return
        while True:
            file = self._path.open("ab+", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().decode(errors="replace") or "another process"
                file.close()
                raise RuntimeError(
                    f"{self._guarded} is being written by {holder}: wait for its end, or "
                    "give another file."
                ) from None
            except OSError:  # no locks here
                file.close()
                self._path.unlink(missing_ok=True)
                return
            if self._is_current(file):
                break
            file.close()  # its holder has removed it in the meantime
        self._file = file
        with contextlib.suppress(OSError):  # of a full disk: this is for people only
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _is_current(self, file: Any) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False
