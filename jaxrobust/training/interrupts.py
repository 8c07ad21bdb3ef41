"""Ctrl-C: what is being written is written first, and the error says how to go on."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until what is inside is written; a second one does interrupt.

    The threads of Orbax would go on, and print a traceback each when the process ends.
    """
    is_main = threading.current_thread() is threading.main_thread()
    earlier = signal.getsignal(signal.SIGINT)
    if not is_main or not callable(earlier):
        yield
        return
    waiting: list[Any] = []

    def wait(number: int, frame: Any) -> None:
        if waiting:
            earlier(number, frame)
        waiting.append((number, frame))

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)
    if waiting:
        earlier(*waiting[0])


def how_to_go_on(path: Any, step: int | None) -> str:
    """Return what an interrupted run leaves.

    Args:
      path: the output directory, or None.
      step: the step of the checkpoint in it, or None.
    """
    if path is None:
        return "Nothing was kept: with out=... a run can be continued."
    if step is None:
        return f"No checkpoint is in {path} yet: the same call begins again."
    return (
        f"The checkpoint of step {step} in {path} is complete: the same call goes on "
        "from there."
    )
