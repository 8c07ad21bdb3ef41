"""The default batch size on a device that says what memory it has."""

import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust.evaluation.queue import _memory
from tests.problems import PGD, evaluate


@pytest.mark.slow
@pytest.mark.parametrize("attack", [PGD, jr.FGSM(random_start=True)])
def test_the_largest_power_of_two_that_fits(monkeypatch, attack):
    """Of a device that has room for about 10 of 30; law 3: the result is the same."""
    whole = evaluate(attack, batch_size=None)
    assert whole.settings["batch_size"] == 30  # all of them, and a CPU does not say
    needed, asked = _memory._needed, {}

    def spy(stage, problem, size):
        asked[size] = needed(stage, problem, size)
        return asked[size]

    monkeypatch.setattr(_memory, "_needed", spy)
    monkeypatch.setattr(_memory, "_limit", lambda mesh: 10**12)
    report = evaluate(attack, batch_size=None)
    assert report.settings["batch_size"] == 30 and list(asked) == [30]
    assert asked[30] > 30 * 6 * 4  # the points at least, in float32
    limit = asked[30] / 3 / _memory._SHARE
    monkeypatch.setattr(_memory, "_limit", lambda mesh: limit)
    report = evaluate(attack, batch_size=None)
    size = report.settings["batch_size"]
    assert size in (2, 4, 8) and asked[size] <= _memory._SHARE * limit
    np.testing.assert_array_equal(report.is_robust, whole.is_robust)
    # Programs of other batch sizes round differently.
    np.testing.assert_allclose(report.x_adv, whole.x_adv, atol=1e-5)
    assert evaluate(attack, batch_size=16).settings["batch_size"] == 16
    monkeypatch.setattr(_memory, "_limit", lambda mesh: 1)
    assert evaluate(attack, batch_size=None).settings["batch_size"] == 1


def test_nothing_is_compiled_twice_where_it_fits(monkeypatch):
    """What was compiled to be measured is what runs."""
    from tests.counting import count_compilations

    # What every evaluation needs is compiled by the first.
    evaluate(jr.PGD(num_steps=2, momentum=0.5), batch_size=None)
    monkeypatch.setattr(_memory, "_limit", lambda mesh: 10**12)
    attack = jr.PGD(num_steps=3, momentum=0.5)
    with count_compilations() as events:
        evaluate(attack, batch_size=None)
    once = len(events)
    monkeypatch.setattr(_memory, "_limit", lambda mesh: None)
    attack = jr.PGD(num_steps=4, momentum=0.5)
    with count_compilations() as events:
        evaluate(attack, batch_size=None)
    assert once <= len(events)
