"""A script in two processes with a device each, as on two hosts."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).parents[1]

HEAD = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
number, arguments = jax.process_index(), sys.argv[3:]
"""


@contextlib.contextmanager
def start(script: str, *arguments: object) -> Iterator[list[subprocess.Popen]]:
    """Start both; the script finds `mesh`, `number` and the `arguments`.

    Whoever still runs at the end is killed (SIGKILL).
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    environment |= {"PYTHONPATH": str(ROOT)}
    options = dict(cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    command = [sys.executable, "-c", HEAD + script, address]
    processes = [
        subprocess.Popen([*command, str(i), *map(str, arguments)], **options)
        for i in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()


def run(script: str, *arguments: object) -> None:
    """Run both to their end; fails with what one says that fails."""
    with start(script, *arguments) as processes:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-2000:]


def kill_when(is_time: Callable[[], bool], script: str, *arguments: object) -> None:
    """Kill both, some rounds or steps after it is time."""
    with start(script, *arguments) as processes:
        deadline = time.monotonic() + 120
        while not is_time():
            assert time.monotonic() < deadline
            _check_running(processes)
            time.sleep(0.02)
        time.sleep(0.5)
        _check_running(processes)


def _check_running(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        if process.poll() is not None:
            raise AssertionError(f"ended early: {process.communicate()[1][-2000:]}")
