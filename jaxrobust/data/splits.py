"""Stratified splits that are the same on every machine and for ever."""

import numpy as np


def stratified_split(
    y: np.ndarray, num_held_out: int, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Split example indices in two, each class in proportion to its frequency.

    Both parts are shuffled so that every prefix of them is stratified too: the first
    100 of 1,000 held-out examples are a fair sample.

    Args:
      y: Labels `[N]`, integers.
      num_held_out: Size of the second part, in [0, N].
      seed: Seed of the shuffle. Same `y`, `num_held_out` and `seed`: same indices.

    Returns:
      Indices of the rest `[N - num_held_out]` and of the held-out part
      `[num_held_out]`: disjoint, together 0 ... N - 1.

    Raises:
      ValueError: If `num_held_out` is not in [0, N].

    Example:
      >>> import numpy as np
      >>> y = np.array([0, 0, 0, 0, 1, 1, 1, 1])
      >>> rest, held_out = stratified_split(y, 2, seed=0)
      >>> len(rest), sorted(y[held_out].tolist())
      (6, [0, 1])
    """
    y = np.asarray(y)
    if not 0 <= num_held_out <= len(y):
        raise ValueError(
            f"num_held_out={num_held_out} examples cannot be taken from {len(y)}; "
            f"give a number from 0 to {len(y)}."
        )
    # RandomState's stream is frozen (NumPy NEP 19); that of default_rng may change.
    order = np.random.RandomState(seed).permutation(len(y))
    # Example k of the n in its class gets place (k + 1/2) / n: sorting by place spreads
    # each class evenly over the order.
    place = np.empty(len(y))
    for label in np.unique(y):
        members = order[y[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = order[np.argsort(place[order], kind="stable")]
    return order[num_held_out:], order[:num_held_out]
