"""What an attack costs, counted in evaluations of the model."""

from typing import NamedTuple


class Cost(NamedTuple):
    """Evaluations of the model for each example.

    Args:
      gradients: Forward and backward passes.
      forwards: Forward passes beyond those.

    Example:
      >>> print(Cost(gradients=40, forwards=1) + Cost(gradients=1, forwards=0))
      Cost(gradients=41, forwards=1)
    """

    gradients: int
    forwards: int

    def __add__(self, other: "Cost") -> "Cost":  # type: ignore[override]
        return Cost(self.gradients + other.gradients, self.forwards + other.forwards)

    def __mul__(self, count: int) -> "Cost":  # type: ignore[override]
        return Cost(count * self.gradients, count * self.forwards)
