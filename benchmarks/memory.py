"""The largest memory that this process has used."""

import pathlib
import resource
import sys


def peak_bytes() -> int:
    """Return the peak of the resident memory, in bytes.

    On Linux VmHWM of /proc/self/status and not `getrusage`: the latter begins with what
    the parent process had used when it started this one.
    """
    status = pathlib.Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
