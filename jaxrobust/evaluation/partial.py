"""The report of an evaluation that was stopped before its end."""

import dataclasses
from typing import Any

import numpy as np

from jaxrobust.evaluation.queue._budget import Stopped
from jaxrobust.evaluation.report import Report


@dataclasses.dataclass(frozen=True)
class PartialReport(Report):
    """What was known when `max_seconds` were over: upper bounds of the accuracies.

    Examples whose attacks had not ended count as robust; `undecided` says which,
    `robust_interval` reaches down to where all of them fall. `attacks` are those that had
    begun; of one that had not ended nothing is said that it did alone.

    Args:
      stopped: Where it stopped.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr, warnings
      >>> x, y = jnp.array([[0.2, 0.6], [0.45, 0.55]]), jnp.array([1, 1])
      >>> with warnings.catch_warnings(action="ignore"):
      ...   report = jr.evaluate(lambda x: x, x, y, attack=jr.PGD(), threat=jr.Linf(0.1),
      ...                        key=jax.random.key(0), max_seconds=1e-9)
      >>> print(report.is_finished, report.undecided.sum())
      False 2
    """

    stopped: Stopped = dataclasses.field(kw_only=True)

    @property
    def is_finished(self) -> bool:
        return False

    @property
    def num_finished(self) -> int:
        return self.stopped.num_finished

    @property
    def undecided(self) -> np.ndarray:
        return self.stopped.undecided

    def why_unfinished(self, *, resumes: bool | None = None) -> str:
        """Say what is missing; `resumes`: whether there is a state file."""
        what = (
            f"not finished: max_seconds were over with {self.undecided.sum():,} of "
            f"{len(self.y):,} examples undecided, which count as robust; the robust "
            "accuracies are upper bounds."
        )
        if resumes is None:
            return what
        again = "The same call goes on from the state_file."
        begins = "Without a state_file the next call begins again."
        return f"{what} {again if resumes else begins}"

    def robustbench(self, name: str, **fields: Any) -> dict[str, Any]:
        raise ValueError(
            "no record of an evaluation that has not finished: its accuracy is an upper "
            "bound. Call evaluate again with its state_file."
        )
