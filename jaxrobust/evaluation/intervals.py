"""Confidence intervals of accuracies."""

import math

# The 97.5% quantile of the standard normal: 95% two-sided.
_Z = 1.959963984540054


def wilson(successes: float, count: int) -> tuple[float, float]:
    """Return the 95% Wilson score interval of a proportion.

    Wilson 1927, doi:10.1080/01621459.1927.10502953. Unlike mean +- 1.96 standard errors
    it stays in [0, 1] and is sensible at 0 and at 1. For a mean of shares, as of random
    models, it is at least as long as needed: shares vary less than successes.

    Args:
      successes: Number of successes, or sum of the shares, 0 to `count`.
      count: Number of trials, at least 1.

    Returns:
      `(low, high)`.

    Raises:
      ValueError: If there are no trials or more successes than trials.

    Example:
      >>> low, high = wilson(90, 100)
      >>> print(f"{low:.3f} {high:.3f}")
      0.826 0.945
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"wilson({successes}, {count}): need 0 <= successes <= count.")
    p = successes / count
    scale = 1 + _Z**2 / count
    centre = (p + _Z**2 / (2 * count)) / scale
    half = _Z / scale * math.sqrt(p * (1 - p) / count + _Z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)
