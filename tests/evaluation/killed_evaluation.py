"""An evaluation in a process of its own; test_saved kills it.

Usage: python -m tests.evaluation.killed_evaluation DIRECTORY SECONDS_PER_ROUND
"""

import pathlib
import sys
import time

import numpy as np

import jaxrobust as jr
from jaxrobust.evaluation.queue import _slots
from tests.problems import KEY, MODEL, PGD, THREAT, X, Y

ATTACK = jr.WorstOf((PGD, jr.Restarts(PGD, 6)))


def run(state_file=None, **changes):
    """Evaluate; the same call for the killed and for the whole run."""
    options = dict(attack=ATTACK, threat=THREAT, key=KEY, batch_size=8, save_every=0.0)
    return jr.evaluate(MODEL, X, Y, state_file=state_file, **options | changes)


def slow_down(seconds: float) -> None:
    """Leave time to kill the process in the middle."""
    advance = _slots._advance

    def slowly(*args, **kwargs):
        time.sleep(seconds)
        return advance(*args, **kwargs)

    _slots._advance = slowly


if __name__ == "__main__":
    directory = pathlib.Path(sys.argv[1])
    slow_down(float(sys.argv[2]))
    report = run(directory / "state.npz")
    arrays = {"x_adv": report.x_adv, "broken_by": report.broken_by}
    np.savez(directory / "result.npz", **arrays)
