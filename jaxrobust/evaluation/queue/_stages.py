"""The attacks of an evaluation, one after the other, each on what is still open."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import losses
from jaxrobust._core import batching, predictions
from jaxrobust.attacks._base import Attack, check_takes_one
from jaxrobust.attacks._model import check_outputs
from jaxrobust.attacks.cost import Cost
from jaxrobust.evaluation import costs
from jaxrobust.evaluation.queue import _forward, _slots
from jaxrobust.evaluation.queue._budget import Budget, Stopped
from jaxrobust.evaluation.queue._problem import (
    NOTHING,
    REACHED,
    WRONG,
    Found,
    Points,
    Problem,
    Stage,
)
from jaxrobust.evaluation.queue._saved import Saved, StateFile
from jaxrobust.types import Array


def of(
    attack: Attack,
    keys: Array | None,
    y: np.ndarray,
    target: Any,
    threat: Any,
    *,
    is_queued: bool,
    is_split: bool,
) -> list[Stage]:
    """Return the attacks that `attack` is made of, in their order.

    Args:
      attack: The attack.
      keys: `[N]` or None.
      y: Labels `[N]`.
      target: What attacks take that do not take labels; None where there is none.
      threat: The threat.
      is_queued: Whether examples may leave as soon as they are broken; if not, each
        attack runs to its end on every example.
      is_split: Whether the parts of an attack are run one by one, or it as a whole.
    """
    whole = ((repr(attack), attack),)
    parts = attack.stages(threat=threat) if is_split else whole
    stages = []
    for number, (name, part) in enumerate(parts):
        can_be = is_queued and part.machine is not None
        own = keys
        if part is not attack and keys is not None:
            own = batching.fold_in(keys, number)
        given = _given(part, y, target, threat)
        admits = functools.partial(attack.admits, number)
        stages.append(Stage(part, number, name, own, can_be, *given, admits))
    _check_target_is_used(attack, stages, target)
    return stages


def _given(
    attack: Attack, y: np.ndarray, target: Any, threat: Any
) -> tuple[Any, Any, Any]:
    """Return what an attack takes, and the loss and `y` that say when it is done."""
    check_takes_one(attack)
    kind, loss = attack.takes, attack.goal
    if kind == losses.LABELS or (kind == losses.ANYTHING and target is None):
        return y, loss, y
    if target is None:
        raise ValueError(
            f"{attack!r} takes {kind} instead of labels: pass them as target=; y stays the "
            "true labels, from which accuracy is counted. An attack on any wrong class "
            "has a loss on labels, such as jr.losses.cross_entropy."
        )
    if kind in (losses.TARGETS, losses.PAIR):
        return target, loss, target
    is_classes = not isinstance(target, tuple) and np.issubdtype(
        target.dtype, np.integer
    )
    if kind != losses.ANYTHING or not is_classes:
        return target, losses.margin, y
    if attack.losses_with_y(y, threat):
        raise ValueError(
            f"{attack!r} does not say whether its loss leaves the classes in target= or "
            "reaches them: write my_loss.takes = jr.losses.TARGETS (or LABELS, and no "
            "target=), or loss=jr.losses.targeted(...)."
        )
    return target, losses.targeted(losses.margin), target


def _check_target_is_used(attack: Attack, stages: list[Stage], target: Any) -> None:
    if target is not None and all(stage.y is not target for stage in stages):
        raise ValueError(
            f"{attack!r} takes labels, and no target=: pass y alone, or an attack with a "
            "loss that takes targets, such as jr.losses.targeted(jr.losses.cross_entropy)."
        )


def check(stages: list[Stage], problem: Problem, size: int) -> None:
    """Trace the start of every stage: what does not fit shows before any work is done."""
    rows = np.zeros(size, np.int64)
    for stage in stages:
        batch = (problem.x, stage.y, problem.logits)
        x, y, logits = jax.tree.map(lambda leaf: leaf[rows], batch)
        threat, keys = problem.threat_of(rows), stage.keys_of(rows)
        check_outputs(stage.attack, problem.logits_fn, x, y, threat)
        if stage.is_queued:
            item = np.zeros(size, np.int32)
            start = None if problem.start is None else problem.start[rows]
            arguments = stage.attack, threat, x, y, logits, item, keys, start
            jax.eval_shape(_slots.start_items, *arguments)
        elif len(stages) > 1:
            arguments = stage.attack, problem.logits_fn, threat, x, y, y, keys
            jax.eval_shape(attack_batch, *arguments, goal=stage.goal)


def run(
    stages: list[Stage],
    problem: Problem,
    chosen: np.ndarray,
    size: int,
    file: StateFile,
    bar: Any,
    budget: Budget,
    *,
    individually: bool,
) -> tuple[Found, np.ndarray, Stopped | None]:
    """Run all stages, or go on from the state file.

    Args:
      stages: The attacks.
      problem: What is attacked.
      chosen: Which examples to attack `[N]`.
      size: Examples at a time.
      file: The state file.
      bar: What is shown on the way, a `ProgressBar`.
      budget: How long to go on.
      individually: Whether each stage attacks all of them.

    Returns:
      What was found, which examples each stage broke `[num_stages, N]`, and where it
      stopped, None at the end.
    """
    saved = file.load(problem, stages)
    if saved is None:
        alone = np.zeros((len(stages), len(problem.y)), bool)
        margins = np.full(alone.shape, -np.inf, np.float32)
        points, found = Points.nothing(problem.x), Found.nothing(problem.x)
        saved = Saved(0, None, points, found, alone, margins)
    bar.expect(_most(stages, problem, int(chosen.sum())))
    for stage in stages[saved.number :]:
        if saved.slots is None:
            saved.points = Points.nothing(problem.x)
        is_open = chosen.copy()
        if not individually:
            is_open &= saved.found.worth < REACHED
            margins = jnp.asarray(saved.margins[: stage.number])
            is_open = np.asarray(stage.admits(margins, jnp.asarray(is_open)))
        rows = np.flatnonzero(is_open)
        is_over = _run_stage(stage, problem, rows, size, saved, file, bar, budget)
        assert saved.slots is not None
        rows_left = saved.slots.rows_left
        if len(rows_left):  # what follows belongs to the report, not to the file
            file.save(saved, problem, now=True)
        is_broken = _conclude(stage, problem, rows, saved, size)
        saved.alone[stage.number, rows] = is_broken
        left = problem.is_correct & (saved.found.broken_by == -1)
        is_last = stage.number + 1 == len(stages)
        if not len(rows_left):
            bar.end_stage(int(left.sum()), len(problem.y))
            saved.number, saved.slots = stage.number + 1, None
            file.save(saved, problem, now=file.is_kept or is_over)
        if is_over and not (is_last and not len(rows_left)):
            is_left = chosen & left
            if is_last:
                is_left &= np.isin(np.arange(len(left)), rows_left)
            where = Stopped(saved.number, stage.number + 1, is_left)
            return saved.found, saved.alone[: saved.number], where
    return saved.found, saved.alone, None


def _most(stages: list[Stage], problem: Problem, count: int) -> Cost | None:
    """Return what the stages take if nothing breaks; None where one does not say."""
    num_classes, total = problem.logits.shape[1], Cost(0, 0)
    for stage in stages:
        cost = costs.of_stage(stage.attack, num_classes, is_queued=stage.is_queued)
        if cost is None:
            return None
        total = total + cost * count
    return total


def _run_stage(
    stage: Stage,
    problem: Problem,
    rows: np.ndarray,
    size: int,
    saved: Saved,
    file: StateFile,
    bar: Any,
    budget: Budget,
) -> bool:
    """Run a stage, or the rest of it; returns whether the time is over."""
    num_items = stage.attack.num_items(problem.logits.shape[1])
    bar.stage(stage.name, num_items * len(rows))
    if saved.slots is None:
        is_queued = stage.is_queued
        begin = _slots.begin(stage, problem, rows, size) if is_queued else None
        saved.slots = begin or _slots.line(rows)
    if stage.is_queued:
        arguments = stage, problem, saved.slots, saved.points, saved.found, size
        rounds = _slots.rounds(*arguments)
    else:
        rounds = _in_batches(stage, problem, saved, size)
    for slots in rounds:
        saved.slots = slots
        items_left = slots.num_items_left(num_items)
        is_left = (saved.found.broken_by == -1) & ~saved.points.is_broken
        num_robust = int((problem.is_correct & is_left).sum())
        bar.update(num_items * len(rows) - items_left, num_robust, len(problem.y))
        counts = saved.found.counts
        bar.measure(Cost(counts["gradients_needed"], counts["forwards_needed"]))
        file.save(saved, problem)
        if budget.is_over():
            return True
    return False


def _conclude(
    stage: Stage, problem: Problem, rows: np.ndarray, saved: Saved, size: int
) -> np.ndarray:
    """Classify the stage's points once more and take over what they are worth.

    All of them: one that misses another goal than the report's (a target, say) may be wrong
    all the same. And close to the boundary the program of a step and that of a forward pass
    may disagree, by rounding; such an example stays open for the later attacks.

    Returns:
      Which of `rows` are classified wrongly.
    """
    if not len(rows):
        return np.zeros(0, bool)
    points, found = saved.points, saved.found
    y = jax.tree.map(lambda leaf: leaf[rows], stage.goal_y)
    batch = (points.x_adv[rows], y, problem.y[rows])

    def judge(batch):
        return _judge(problem.logits_fn, *batch, goal=stage.goal)

    judged = _forward.over_batches(judge, batch, problem.placing, size)
    is_reached, is_wrong, margins = judged
    saved.margins[stage.number, rows] = margins
    worth = np.where(is_reached, REACHED, np.where(is_wrong, WRONG, NOTHING))
    found.counts["not_confirmed"] += int((points.is_broken[rows] & ~is_reached).sum())
    found.count(Cost(0, 1), -(-len(rows) // size) * size, len(rows))
    found.take(points, rows, worth.astype(np.int8), stage.number)
    return worth > NOTHING


@functools.partial(jax.jit, static_argnames="goal")
def _judge(logits_fn, x_adv, y, labels, *, goal):
    logits = predictions.wide(logits_fn(x_adv))
    is_wrong = predictions.predict(logits) != labels
    return losses.is_broken(goal, logits, y), is_wrong, losses.margin(logits, labels)


def lower(stage: Stage, problem: Problem, rows: np.ndarray) -> Any:
    """Return the program of a batch of an attack that is run to its end, not compiled."""
    return attack_batch.lower(*_arguments(stage, problem, rows), goal=stage.goal)


def _arguments(stage: Stage, problem: Problem, rows: np.ndarray) -> tuple[Any, ...]:
    batch = (problem.x, stage.y, stage.goal_y)
    batch = jax.tree.map(lambda leaf: leaf[rows], batch)
    keys = None if stage.keys is None else stage.keys[rows]
    x, y, goal_y, keys = problem.placing.spread((*batch, keys))
    threat = problem.threat_of(rows)
    return stage.attack, problem.logits_fn, threat, x, y, goal_y, keys


def _in_batches(
    stage: Stage, problem: Problem, saved: Saved, size: int
) -> Iterator[_slots.Slots]:
    """Run an attack to its end on the examples that wait; yields after each batch."""
    cost = stage.attack.total_cost(problem.logits.shape[1])
    line = saved.slots
    while line is not None and len(line.waiting):
        chosen, count = next(_forward.batches(line.waiting[:, 0], size))
        x_adv, is_broken = problem.placing.fetch(
            attack_batch(*_arguments(stage, problem, chosen), goal=stage.goal)
        )
        kept = slice(count)
        loss = np.zeros(count, np.float32)  # every example comes once
        saved.points.put(chosen[kept], x_adv[kept], loss, is_broken[kept])
        if cost is not None:
            # One forward pass beyond the attack's own says what it broke.
            saved.found.count(cost + Cost(0, 1), len(chosen), count)
        line.waiting = line.waiting[count:]
        yield line


@functools.partial(jax.jit, static_argnames="goal")
def attack_batch(attack, logits_fn, threat, x, y, goal_y, keys, *, goal):
    """Run an attack to its end; return its points and whether they reach the goal."""
    x_adv = attack.run(logits_fn, x, y, threat, keys)
    logits = predictions.wide(logits_fn(x_adv))
    return x_adv, losses.is_broken(goal, logits, goal_y)


def cost(stages: list[Stage], found: Found, num_examples: int) -> dict | None:
    """Return the evaluations of all attacks and of the evaluation itself.

    Two forward passes for each example are the evaluation's own: on the clean inputs and on
    the returned points. None if one of the attacks does not say what it costs.
    """
    if any(not s.is_queued and s.attack.total_cost() is None for s in stages):
        return None
    counts = {k: n for k, n in found.counts.items() if k != "not_confirmed"}
    counts["forwards"] += 2 * num_examples
    counts["forwards_needed"] += 2 * num_examples
    return counts
