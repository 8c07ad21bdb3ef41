"""Where a training run stands between two steps, and what is kept of it on disk."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxrobust.training.metrics import EpochMeans
from jaxrobust.training.step import TrainState, Weights, copy_tree

# What a checkpoint keeps of a run as it is.
_HOST_FIELDS = ("best_value", "best_epoch", "step", "seconds", "history")


@dataclasses.dataclass
class Watched:
    """What the monitor has seen of a run.

    Attributes:
      last: the accuracies of the last check, fast and strong.
      is_collapsed: whether that was one of a collapse.
      is_replaced: whether the objective has been replaced by the monitor's.
      scores: what the line of the running epoch will have of it.
    """

    last: list[float] | None = None
    is_collapsed: bool = False
    is_replaced: bool = False
    scores: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Run:
    """Where a run stands between two steps.

    Attributes:
      state: the training state; its buffers are donated to the next step.
      best: the best weights so far.
      best_value: their validation accuracy.
      best_epoch: the epoch that they are of, from 1; 0 before the first.
      step: optimiser steps done, on the host.
      seconds: wall-clock time spent, earlier sessions included.
      means: sums of the running epoch.
      history: one dict per finished epoch.
      watched: what the monitor has seen.
      average: the mean of the weights (SWA), None before its first term.
      num_averaged: the terms of it.
      sound: the run at the last sound check, to come back to; None without need of it.
    """

    state: TrainState
    best: Weights
    best_value: float = -1.0
    best_epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    means: EpochMeans = dataclasses.field(default_factory=EpochMeans)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    watched: Watched = dataclasses.field(default_factory=Watched)
    average: Weights | None = None
    num_averaged: int = 0
    sound: "Run | None" = None

    @property
    def evaluated(self) -> Weights:
        """The weights to validate, keep and return."""
        return self.state.evaluated if self.average is None else self.average

    @property
    def epoch(self) -> int:
        """The epochs that are over."""
        return len(self.history)

    @property
    def step_in_epoch(self) -> int:
        """The steps of the running epoch that are done."""
        return self.step - (self.history[-1]["step"] if self.history else 0)

    def snapshot(self) -> "Run":
        """Return the run as it is now, in buffers of its own."""
        self.means.drain()
        return dataclasses.replace(
            self,
            state=copy_tree(self.state),
            means=EpochMeans(self.means.sums, self.means.count),
            history=[*self.history],
            watched=dataclasses.replace(self.watched, scores=dict(self.watched.scores)),
            sound=None,
        )

    def set_back(self) -> None:
        """Go back to the last sound check, and on with the monitor's objective.

        The time that was spent counts. The means of the epoch are of the new objective, as
        another one has other metrics.
        """
        assert self.sound is not None
        for name, value in vars(self.sound).items():  # its `sound` is None
            if name != "seconds":
                setattr(self, name, value)
        self.watched.is_replaced = True
        self.means = EpochMeans()

    def end_epoch(self, scores: dict[str, float], seconds: float) -> None:
        """Add the epoch to the history and keep its weights where they are best."""
        epoch = self.epoch + 1
        # Without validation every epoch is better than the one before.
        value = scores.get("val_robust", scores.get("val_clean", self.best_value))
        if value > self.best_value or not scores:
            self.best = copy_tree(self.evaluated)
            self.best_value, self.best_epoch = value, epoch
        line = {"epoch": epoch, "step": self.step, "seconds": round(seconds, 3)}
        line |= self.means.means() | scores | self.watched.scores
        self.watched.scores = {}
        self.history.append(line | {"best_epoch": self.best_epoch})


def arrays_of(run: Run) -> dict[str, Any]:
    """Return the arrays that a checkpoint keeps of a run."""
    arrays: dict[str, Any] = {"state": run.state, "best": run.best}
    return arrays if run.average is None else arrays | {"average": run.average}


def facts_of(run: Run) -> dict[str, Any]:
    """Return what a checkpoint keeps of a run besides the arrays."""
    return {
        "means": {"sums": run.means.sums, "count": run.means.count},
        "watched": dataclasses.asdict(run.watched),
        "num_averaged": run.num_averaged,
        **{name: getattr(run, name) for name in _HOST_FIELDS},
    }


def to_run(facts: Mapping[str, Any], trees: Mapping[str, Any]) -> Run:
    """Return the run of a checkpoint."""
    return Run(
        state=trees["state"],
        best=trees["best"],
        means=EpochMeans(**facts["means"]),
        average=trees.get("average"),
        num_averaged=facts.get("num_averaged", 0),
        watched=Watched(**facts.get("watched", {})),
        **{name: facts[name] for name in _HOST_FIELDS},
    )
