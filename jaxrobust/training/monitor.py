"""Catastrophic overfitting: what it is seen by, and what is done about it."""

import dataclasses
from typing import Any, NamedTuple

from jaxrobust._core.representation import concise
from jaxrobust.attacks import FGSM, PGD
from jaxrobust.attacks._base import as_attack, check_takes_labels


class CollapseWarning(UserWarning):
    """A model that is being trained has overfitted to a weak attack.

    Wong et al. 2020, arXiv:2001.03994, section 5.4: a strong attack breaks what the weak
    one no longer does. `fit(monitor=...)` warns at the step where it sees this.

    Example:
      >>> import warnings, jaxrobust as jr
      >>> with warnings.catch_warnings():  # an error ends the training there
      ...     warnings.simplefilter("error", jr.training.CollapseWarning)
    """


class Check(NamedTuple):
    """Accuracies under the two attacks, on the same examples."""

    fast: float
    strong: float

    def above(self, chance: float) -> "Check":
        """Return it with what a constant reaches as the least that counts."""
        return Check(max(self.fast, chance), max(self.strong, chance))


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Monitor:
    """Watches for catastrophic overfitting while `fit` trains: `fit(monitor=Monitor())`.

    Wong et al. 2020, arXiv:2001.03994, section 5.4. The same examples, the first of
    `validation`, or of the training data where there is none, are attacked by a weak and by
    a strong attack. Training has collapsed where the weak accuracy exceeds the strong one
    by more than `gap` and is more than twice that, or where the strong one has fallen by
    more than `drop` since the check before and the weak one by less than half of that.
    In differences, accuracy below that of the best constant counts as that: a model that
    has not learnt anything yet has not collapsed.

    Each check adds `monitor_fast` and `monitor_strong` to the line of its epoch, a collapse
    adds `collapsed`, the step at which it was seen, a line on stderr and a
    `CollapseWarning`. A check costs both attacks on `num_examples` examples.

    Args:
      attack: The strong attack.
      fast: The weak attack; best the one that trains.
      threat: The threat of both; by default that of the objective. Where eps grows
        (`eps_schedule`), a model is no match for the final one at the start, which looks
        like a collapse: watch it with the eps of the early steps, or raise `gap`.
      every: Steps between checks; by default the end of each epoch.
      num_examples: How many examples are attacked.
      drop: The fall of the strong accuracy between two checks that is too much.
      gap: The difference of the accuracies that is too much, where it is more than half
        of the weak one: on a large ball a sound model may be 0.3 apart.
      then: The objective to go on with, from the state of the last sound check (its
        weights, the optimiser's state and the step; the start, if none was sound); the
        lines of later epochs are dropped. None goes on as before.

    Raises:
      ValueError: For numbers out of range.
      TypeError: For attacks that do not take labels.

    Example:
      >>> import jaxrobust as jr
      >>> robust = jr.training.adversarial(jr.PGD(num_steps=2), jr.Linf(8 / 255))
      >>> print(Monitor(every=100, then=robust))
      Monitor(every=100, then=Adversarial(PGD(num_steps=2), Linf(8/255)))
    """

    attack: Any = PGD(num_steps=10, rel_step_size=0.25)  # noqa: RUF009
    fast: Any = FGSM()  # noqa: RUF009
    threat: Any = None
    every: int | None = None
    num_examples: int = 256
    drop: float = 0.2
    gap: float = 0.25
    then: Any = None

    __repr__ = concise

    def __post_init__(self):
        for name in ("attack", "fast"):
            check_takes_labels(as_attack(getattr(self, name)), f"Monitor({name}=)")
        for name in ("drop", "gap"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ValueError(
                    f"Monitor({name}={value}): a difference of accuracies in (0, 1] is "
                    "needed, such as 0.2."
                )
        for name in ("num_examples", "every"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(
                    f"Monitor({name}={value!r}): a whole number of at least 1 is needed."
                )

    def is_collapsed(self, before: Check | None, now: Check, chance: float) -> bool:
        """Return whether training has collapsed, by this check and the one before."""
        is_apart = now.strong < now.fast / 2
        now = now.above(chance)
        if is_apart and now.fast - now.strong > self.gap:
            return True
        if before is None:
            return False
        before = before.above(chance)
        fall = before.strong - now.strong
        return fall > self.drop and before.fast - now.fast < fall / 2
