"""Wilson intervals against SciPy."""

import pytest
import scipy.stats

from jaxrobust.evaluation import wilson


@pytest.mark.parametrize("k, n", [(0, 10), (10, 10), (3, 10), (1, 1), (4753, 10000)])
def test_wilson_agrees_with_scipy(k, n):
    """The closed formula is the score interval of `scipy.stats.binomtest`."""
    theirs = scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("k, n", [(0, 0), (2, 1), (-1, 3)])
def test_impossible_counts(k, n):
    """Nothing can be said about no trials."""
    with pytest.raises(ValueError, match="need 0 <= successes <= count"):
        wilson(k, n)
