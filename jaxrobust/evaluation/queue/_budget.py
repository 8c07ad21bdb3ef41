"""How long an evaluation may go on, and what it knows where it stops before its end."""

import time
from typing import NamedTuple

import numpy as np

from jaxrobust._core import processes


class Budget:
    """The time until which rounds are begun; process 0's clock, and nobody else's."""

    def __init__(self, deadline: float | None = None):
        """Allow rounds until `time.monotonic()` is `deadline`; None: without end."""
        self._deadline = deadline

    def is_over(self) -> bool:
        """Whether to stop; asked after a round, so that each call of `evaluate` gets on."""
        if self._deadline is None:
            return False
        return processes.decide(time.monotonic() >= self._deadline)


class Stopped(NamedTuple):
    """Where an evaluation has stopped.

    Attributes:
      num_finished: How many of the attacks have ended.
      num_begun: How many of them have begun, one more at most.
      undecided: Which examples count as robust and were still to be attacked `[N]`.
    """

    num_finished: int
    num_begun: int
    undecided: np.ndarray
