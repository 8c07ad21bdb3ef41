"""Averages of the weights, which are validated, saved and returned instead of the last."""

import dataclasses
import math

from jaxrobust._core.representation import concise


@dataclasses.dataclass(frozen=True, repr=False)
class EMA:
    """An exponential moving average of weights and batch statistics: `fit(average=EMA(d))`.

    Polyak & Juditsky 1992; the decay is (1 + step) / (10 + step) at first, as in
    TensorFlow. `fit(ema_decay=d)` is a short form.

    Args:
      decay: Share of the earlier average that each step keeps, in (0, 1).

    Raises:
      ValueError: If it lies elsewhere.

    Example:
      >>> print(EMA(0.999))
      EMA(0.999)
    """

    decay: float

    __repr__ = concise

    def __post_init__(self):
        if not 0 < self.decay < 1:
            raise ValueError(f"EMA({self.decay}): a decay in (0, 1) is needed.")


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class SWA:
    """Stochastic weight averaging: the mean of the weights at the ends of late epochs.

    Izmailov et al. 2018, arXiv:1803.05407, algorithm 1. The BatchNorm statistics of the
    average are estimated anew, in one pass over the training data, clean and augmented as
    in training; best with a learning rate that stays high or is cyclic.

    Args:
      start: Share of the epochs after which averaging begins, in [0, 1). A run whose
        number of epochs grows would begin elsewhere, and is another run.
      every: Epochs from one term of the mean to the next.

    Raises:
      ValueError: For numbers out of range.

    Example:
      >>> print(SWA(start=0.5), SWA(start=0.5).first(num_epochs=10))
      SWA(start=0.5) 5
    """

    start: float = 0.75
    every: int = 1

    __repr__ = concise

    def __post_init__(self):
        if not 0 <= self.start < 1:
            raise ValueError(
                f"SWA(start={self.start}): a share of the epochs in [0, 1) is needed."
            )
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(
                f"SWA(every={self.every!r}): a whole number of epochs of at least 1 is "
                "needed."
            )

    def first(self, num_epochs: int) -> int:
        """Return the epoch, from 1, whose end is the first term."""
        return max(1, math.ceil(self.start * num_epochs))
