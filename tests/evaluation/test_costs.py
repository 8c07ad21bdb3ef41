"""The cost that is declared before an evaluation is what it needs if nothing breaks."""

import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust.attacks.cost import Cost
from jaxrobust.evaluation import _progress
from tests.problems import KEY, MODEL, PGD, X

Y = np.asarray(MODEL(X)).argmax(-1)
# All are right, and a ball of no size breaks none.
THREAT = jr.Linf(0.0)
PARTS = (
    jr.FGSM(),
    jr.Restarts(PGD, 2),
    jr.Targets(jr.FAB(num_steps=3, targeted=True)),
    jr.Square(num_queries=5),
)


def test_what_is_needed_where_nothing_breaks():
    """In batches, with restarts, with targets, and points that are looked at again."""
    attack = jr.WorstOf(PARTS)
    report = jr.evaluate(MODEL, X, Y, attack=attack, threat=THREAT, key=KEY)
    assert report.robust_accuracy == 1
    counts = {"num_examples": len(X), "num_classes": 3}
    cost = jr.evaluation.estimate(attack, threat=THREAT, **counts)
    needed = (report.cost["gradients_needed"], report.cost["forwards_needed"])
    assert needed == cost


def test_an_attack_that_does_not_say():
    attack = jr.WorstOf((jr.FGSM(), lambda fn, x, y, *, threat, key=None: x))
    assert jr.evaluation.estimate(attack, threat=THREAT, num_examples=5) is None


@pytest.mark.parametrize("speed, text", [(1, "20 min"), (0.1, "3.4 h"), (30, None)])
def test_time_left_is_said_once(monkeypatch, capfd, speed, text):
    """From the second call on, by what was done since the first; not of short ones."""
    now = [0.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    with _progress.ProgressBar(is_shown=True) as bar:
        bar.expect(Cost(400, 30))  # 1,230 passes
        for done in range(0, 900, 6):
            now[0] = 100.0 + done / speed  # of which 100 went into compilation
            bar.measure(Cost(done // 3, 0))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == (text is not None)
    if text:
        expected = f"at most 400 gradients and 30 forwards in all, {text} more"
        assert lines[0].startswith(expected)
