"""Robustness curves: what breaks stays broken, and costs nothing again."""

import jax
import numpy as np
import pytest

import jaxrobust as jr
from tests.counting import count_compilations
from tests.problems import KEY, MODEL, PGD, THREAT, N, X, Y

EPS = (0.02, 0.05, 0.1, 0.2)


def curve(**options):
    return jr.evaluation.robustness_curve(
        MODEL, X, Y, attack=PGD, threat=THREAT, key=KEY, batch_size=8, **options
    )


def test_monotone_and_cheaper_than_separate_runs():
    """Accuracy falls; fewer gradients than one run for each radius."""
    result = curve(eps=EPS[::-1])  # any order
    np.testing.assert_allclose(result.eps, EPS)
    # What a smaller radius has broken is broken at a larger one, without another look.
    largest = jr.evaluate(
        MODEL, X, Y, attack=PGD, threat=THREAT.with_eps(max(EPS)), key=KEY, batch_size=8
    )
    np.testing.assert_array_equal(
        result.is_robust[-1], result.is_robust[-2] & largest.is_robust
    )
    assert result.robust_accuracy[0] > result.robust_accuracy[-1]
    separate = 0
    for radius, row in zip(EPS, result.is_robust, strict=True):
        options = dict(attack=PGD, threat=jr.Linf(radius), key=KEY, batch_size=8)
        report = jr.evaluate(MODEL, X, Y, **options)
        separate += report.cost["gradients"]
        # What a smaller radius has broken cannot be robust; the rest is decided alike.
        assert (row <= report.is_robust).all()
    assert sum(cost["gradients"] for cost in result.cost) < separate


def test_new_radii_compile_nothing():
    """The number of examples left changes with the radius, the program does not."""
    curve(eps=(0.01,))
    with count_compilations() as events:
        curve(eps=(0.03, 0.07, 0.15))
    assert not events


def test_summary_and_text():
    """Figures as JSON values, intervals around the accuracies."""
    result = curve(eps=EPS)
    figures = result.summary()
    assert figures["num_examples"] == N and len(figures["intervals"]) == len(EPS)
    expected = [jr.evaluation.wilson(k, N) for k in result.is_robust.sum(1)]
    np.testing.assert_allclose(result.intervals, expected)
    assert "0.05" in str(result)


def test_a_curve_of_nothing_left():
    """Beyond the radius at which all is broken nothing is attacked any more."""
    x, y = np.array([[0.2, 0.6], [0.45, 0.55]], np.float32), np.array([1, 1])
    threat = jr.Linf(0.0)
    wide = jr.evaluation.robustness_curve(
        lambda x: 2 * x, x, y, attack=jr.FGSM(), threat=threat, eps=[0.3, 0.4]
    )
    assert wide.robust_accuracy.tolist() == [0.0, 0.0]
    assert len(wide.cost) == 1


@pytest.mark.parametrize(
    "eps, options, advice",
    [([], {}, "at least one radius"), ([0.1], {"state_file": "s"}, "does not save")],
)
def test_misuse(eps, options, advice):
    """Misuse is refused before anything runs."""
    with pytest.raises(ValueError, match=advice):
        curve(eps=eps, **options)


@pytest.mark.slow
def test_vmap_over_eps():
    """A sweep over eps inside one program, for an attack as a function."""
    radii = np.array(EPS, np.float32)
    attacked = jax.vmap(
        lambda eps: PGD(MODEL, X, Y, threat=jr.Linf(eps), key=KEY), axis_size=4
    )(radii)
    assert attacked.shape == (4, *X.shape)
    for radius, x_adv in zip(radii, attacked, strict=True):
        assert np.abs(x_adv - X).max() <= radius
