"""The attacks of an evaluation, one after the other, each on what is still open."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import _batch, losses
from jaxrobust.attacks import items
from jaxrobust.attacks.cost import Cost
from jaxrobust.evaluation import _forward, _problem, _slots
from jaxrobust.evaluation._problem import Found, Problem, Stage
from jaxrobust.evaluation._saved import Saved, StateFile
from jaxrobust.types import Array, Attack


def of(
    attack: Attack, problem: Problem, keys: Array | None, *, is_queued: bool
) -> list[Stage]:
    """Return the attacks that `attack` is made of, in their order.

    Not queued, an attack is one stage and runs to its end on every example.
    """
    split = getattr(attack, "stages", None)
    if split is None or not is_queued:
        can_be = is_queued and _problem.can_be_queued(attack)
        return [Stage(attack, 0, repr(attack), keys, can_be)]
    parts = split(threat=problem.threat)
    return [
        Stage(
            part,
            number,
            name,
            None if keys is None else _batch.fold_in(keys, number),
            _problem.can_be_queued(part),
        )
        for number, (name, part) in enumerate(parts)
    ]


def run(
    stages: list[Stage],
    problem: Problem,
    y: np.ndarray,
    among: np.ndarray,
    size: int,
    file: StateFile,
    *,
    individually: bool,
    progress: bool,
) -> tuple[Found, np.ndarray]:
    """Run all stages, or go on from the state file.

    Returns:
      What was found, and which examples each stage broke `[num_stages, N]`.
    """
    from jaxrobust.evaluation._progress import ProgressBar

    saved = file.load(problem, stages)
    if saved is None:
        found = Found.nothing(problem.x)
        alone = np.zeros((len(stages), len(y)), bool)
        saved = Saved(0, None, found, found, alone)
    with ProgressBar(is_shown=progress) as bar:
        for stage in stages[saved.number :]:
            if not individually:
                saved.found = saved.total
            elif saved.slots is None:
                saved.found = Found.nothing(problem.x)
            _run_stage(stage, problem, y, among, size, saved, file, bar)
            _confirm(stage, problem, saved.found, size)
            saved.alone[stage.number] = saved.found.broken_by == stage.number
            if individually:
                saved.total.merge(saved.found, is_first=stage.number == 0)
            left = (problem.logits.argmax(-1) == y) & (saved.total.broken_by == -1)
            bar.end_stage(int(left.sum()), len(y))
            saved.number, saved.slots = stage.number + 1, None
            file.save(saved, problem)
    return saved.total, saved.alone


def _run_stage(
    stage: Stage,
    problem: Problem,
    y: np.ndarray,
    among: np.ndarray,
    size: int,
    saved: Saved,
    file: StateFile,
    bar: Any,
) -> None:
    is_correct = problem.logits.argmax(-1) == y
    found = saved.found
    rows = np.flatnonzero(among & is_correct & (found.broken_by == -1))
    num_items = items.num_items(stage.attack, problem.logits.shape[1])
    bar.stage(stage.name, num_items * len(rows))
    if not stage.is_queued:
        is_only = stage.number == 0 and saved.alone.shape[0] == 1
        rows = np.flatnonzero(among) if is_only else rows
        _in_batches(stage, problem, found, rows, size)
        return
    if saved.slots is None:
        saved.slots = _slots.begin(stage, problem, rows, size)
    for slots in _slots.rounds(stage, problem, saved.slots, found, size):
        saved.slots = slots
        items_left = slots.num_items_left(num_items)
        num_robust = int((is_correct & (found.broken_by == -1)).sum())
        bar.update(num_items * len(rows) - items_left, num_robust, len(y))
        file.save(saved, problem)


def _confirm(stage: Stage, problem: Problem, found: Found, size: int) -> None:
    """Classify the broken examples again; what is not broken after all stays open.

    Close to the boundary the program of a step and that of a forward pass may disagree,
    by rounding. Otherwise such an example would be robust in the report although the
    later attacks had left it out.
    """
    rows = np.flatnonzero(found.broken_by == stage.number)
    if not len(rows):
        return
    loss = goal(stage.attack)

    def is_broken(batch):
        logits = _forward.logits(problem.logits_fn, batch[0])
        return losses.is_success(loss, logits, batch[1])

    y = jax.tree.map(lambda leaf: leaf[rows], problem.y)
    batch = (found.x_adv[rows], y)
    confirmed = _forward.over_batches(is_broken, batch, problem.placing, size)
    found.broken_by[rows[~confirmed]] = -1
    found.counts["not_confirmed"] += int((~confirmed).sum())


def goal(attack: Any) -> Any:
    """Return the loss whose goal the attack has."""
    return items.loss_of(attack) or losses.margin


def _in_batches(stage: Stage, problem: Problem, found: Found, rows, size: int) -> None:
    """Run an attack to its end on the examples `rows`."""
    cost = total_cost(stage.attack)
    for chosen, count in _forward.batches(rows, size):
        batch = jax.tree.map(lambda leaf, c=chosen: leaf[c], (problem.x, problem.y))
        keys = None if stage.keys is None else stage.keys[chosen]
        x, y, keys = problem.placing.spread((*batch, keys))
        threat = problem.threat_of(chosen)
        result = _attack(stage.attack, problem.logits_fn, threat, x, y, keys)
        x_adv, is_broken = problem.placing.fetch(result)
        kept, is_broken = chosen[:count], is_broken[:count]
        # A later attack's point replaces an earlier one's only if it breaks the example.
        is_kept = is_broken | (stage.number == 0)
        found.x_adv[kept[is_kept]] = x_adv[:count][is_kept]
        found.broken_by[kept[is_broken]] = stage.number
        if cost is not None:
            # One forward pass beyond the attack's own says what it broke.
            found.count(cost + Cost(0, 1), len(chosen), count)


@jax.jit
def _attack(attack, logits_fn, threat, x, y, keys) -> tuple[Array, Array]:
    x_adv = attack(logits_fn, x, y, threat=threat, key=keys)
    logits = logits_fn(x_adv).astype(jnp.float32)
    return x_adv, losses.is_success(goal(attack), logits, y)


def total_cost(attack: Attack) -> Any:
    """Return what an attack says that it costs, or None."""
    return getattr(attack, "cost", None)


def cost(stages: list[Stage], found: Found, num_examples: int) -> dict | None:
    """Return the evaluations of all attacks and of the evaluation itself.

    Two forward passes for each example are the evaluation's own: on the clean inputs and on
    the returned points. None if one of the attacks does not say what it costs.
    """
    if any(not s.is_queued and total_cost(s.attack) is None for s in stages):
        return None
    counts = {k: n for k, n in found.counts.items() if k != "not_confirmed"}
    counts["forwards"] += 2 * num_examples
    counts["forwards_needed"] += 2 * num_examples
    return counts
