"""A queue of examples that share the slots of one compiled program.

An attack is a state machine over examples (`init`, `step`): every leaf of its state has
the batch axis first. The batch has a fixed number of slots. An example leaves its slot
as soon as it is broken, or when its last item (a restart, a target class) has ended; the
next waiting example takes the slot. The host decides between calls, so that nothing is
compiled twice and no step is spent on an example whose fate is known.

The items of one example run one after the other, in order: its result does not
depend on which other examples are in the queue, nor on how many slots there are.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import losses
from jaxrobust._core import batching, predictions
from jaxrobust._cpu.convolution import fast_convolutions
from jaxrobust.attacks.cost import Cost
from jaxrobust.evaluation.queue._problem import Found, Points, Problem, Stage

EMPTY = -1  # in `rows`: nobody sits in this slot

# An example that withstands so many steps is likely to withstand the rest.
_FIRST_STEPS = 8

# So many steps, of all slots, are worth another program.
_WORTH_COMPILING = 32


@dataclasses.dataclass
class Slots:
    """Who sits where.

    Attributes:
      rows: Number of the example in each slot `[S]`, `EMPTY` for none.
      items: Number of its item `[S]`.
      steps: Evaluations of that item so far `[S]`.
      waiting: Numbers of the examples that wait, and of the item that is theirs next
        `[M, 2]`. An example waits after each of its items, so that the last round of all
        is as long as an item and not as all items of an example.
      state: The attack's state on the devices, leaves `[S, ...]`.
    """

    rows: np.ndarray
    items: np.ndarray
    steps: np.ndarray
    waiting: np.ndarray
    state: Any

    @property
    def is_taken(self) -> np.ndarray:
        """Which slots work on an example, `[S]`."""
        return self.rows != EMPTY

    @property
    def rows_left(self) -> np.ndarray:
        """Numbers of the examples that are being worked on, or wait."""
        return np.concatenate([self.waiting[:, 0], self.rows[self.is_taken]])

    def num_items_left(self, num_items: int) -> int:
        """Return how many items are still to be run, if nothing breaks."""
        begun = np.concatenate([self.waiting[:, 1], self.items[self.is_taken]])
        return int((num_items - begun).sum())


def begin(stage: Stage, problem: Problem, rows: np.ndarray, num_slots: int) -> Slots:
    """Seat the first of the open examples `rows`."""
    nobody = np.full(num_slots, EMPTY, np.int64)
    zeros = np.zeros(num_slots, np.int32)
    slots = Slots(nobody, zeros, zeros.copy(), line(rows).waiting, None)
    _seat(stage, problem, slots, np.ones(num_slots, bool))
    return slots


def line(rows: np.ndarray) -> Slots:
    """Let examples wait that are run in batches: nobody takes a seat."""
    none, zeros = np.zeros(0, np.int64), np.zeros(0, np.int32)
    waiting = np.stack([rows, np.zeros_like(rows)], axis=1).astype(np.int64)
    return Slots(none, zeros, zeros, waiting, None)


def rounds(
    stage: Stage,
    problem: Problem,
    slots: Slots,
    points: Points,
    found: Found,
    num_slots: int,
) -> Iterator[Slots]:
    """Run until nobody waits and all slots are empty; yields after each round.

    Between two rounds `slots`, `points` and the counts in `found` are all that there is to
    save. `num_slots`: of which it began.
    """
    while slots.is_taken.any():
        slots = _shrink_if_it_pays(stage, problem, slots)
        _round(stage, problem, slots, points, found, num_slots // len(slots.rows))
        yield slots


def lower(stage: Stage, problem: Problem, rows: np.ndarray) -> Any:
    """Return the program of a round on as many slots, not compiled."""
    slots = begin(stage, problem, rows, len(rows))
    arguments = stage.inner, problem.logits_fn, problem.threat_of(rows), slots.state, 1
    return _advance.lower(*arguments, is_loop=problem.is_loop)


def _round(
    stage: Stage,
    problem: Problem,
    slots: Slots,
    points: Points,
    found: Found,
    shrinkage: int,
) -> None:
    """Advance every slot by some steps, then let out who is done."""
    num_steps = _steps_per_round(stage.inner, problem, slots, shrinkage)
    threat = problem.threat_of(np.maximum(slots.rows, 0))
    slots.state, outcome, taken = _advance(
        stage.inner,
        problem.logits_fn,
        threat,
        slots.state,
        num_steps,
        is_loop=problem.is_loop,
    )
    taken, is_broken, is_over = problem.placing.fetch(
        (taken, outcome.is_broken, outcome.is_over)
    )
    cost = stage.inner.cost(problem.logits.shape[1])
    needed = int(taken[slots.is_taken].sum())
    found.count(cost, num_steps * len(slots.rows), needed)
    slots.steps = slots.steps + taken
    is_over = (is_broken | is_over) & slots.is_taken
    if is_over.any():
        ended = _Ended(outcome.x_adv, outcome.score, is_broken)
        if not stage.inner.is_evaluated:
            ended = _look_at(ended, stage, problem, slots, found)
        best, score = problem.placing.fetch((ended.x_adv, ended.score))
        is_broken = np.asarray(ended.is_broken)
        at = slots.rows[is_over]
        points.put(at, best[is_over], score[is_over], is_broken[is_over])
        _seat(stage, problem, slots, is_over, is_broken)


class _Ended(NamedTuple):
    """What an item has to show at its end; `[S, ...]`."""

    x_adv: Any
    score: Any
    is_broken: Any


def _look_at(
    ended: _Ended, stage: Stage, problem: Problem, slots: Slots, found: Found
) -> _Ended:
    """Classify the points of an attack that has not looked at them itself."""
    rows = np.maximum(slots.rows, 0)
    y = jax.tree.map(lambda leaf: leaf[rows], stage.goal_y)
    y = problem.placing.spread(y)
    judged = _look(problem.logits_fn, ended.x_adv, y, goal=stage.goal)
    score, is_reached = problem.placing.fetch(judged)
    found.count(Cost(0, 1), len(rows), int(slots.is_taken.sum()))
    return _Ended(ended.x_adv, score, ended.is_broken | is_reached)


@functools.partial(jax.jit, static_argnames="goal")
def _look(logits_fn, x_adv, y, *, goal):
    """Return the loss of points and whether they reach the goal."""
    logits = predictions.wide(logits_fn(x_adv))
    return goal(logits, y), losses.is_broken(goal, logits, y)


def _seat(stage, problem, slots: Slots, is_free, is_broken=None) -> None:
    """Let unbroken examples wait for their next item, and seat those at the front."""
    num_items = stage.attack.num_items(problem.logits.shape[1])
    if is_broken is not None:
        goes_on = is_free & ~is_broken & (slots.items + 1 < num_items)
        again = np.stack([slots.rows[goes_on], slots.items[goes_on] + 1], axis=1)
        slots.waiting = np.concatenate([slots.waiting, again])
    free = np.flatnonzero(is_free)
    taken, free = free[: len(slots.waiting)], free[len(slots.waiting) :]
    slots.rows[taken], slots.items[taken] = slots.waiting[: len(taken)].T
    slots.rows[free] = EMPTY
    slots.waiting = slots.waiting[len(taken) :]
    is_new = np.zeros(len(slots.rows), bool)
    is_new[taken] = True
    slots.steps = np.where(is_new, 0, slots.steps)
    if is_new.any():
        if slots.state is None:
            slots.state = start(stage, problem, slots)
        else:
            is_new = problem.placing.spread(is_new)
            arguments = _arguments(stage, problem, slots)
            slots.state = _restart(slots.state, is_new, *arguments)


def start(stage: Stage, problem: Problem, slots: Slots) -> Any:
    """Return the state at the start of every slot's item."""
    return start_items(*_arguments(stage, problem, slots))


def _arguments(stage: Stage, problem: Problem, slots: Slots) -> tuple[Any, ...]:
    rows = np.maximum(slots.rows, 0)
    batch = (problem.x, stage.y, problem.logits, problem.start)
    x, y, logits, start = jax.tree.map(lambda leaf: leaf[rows], batch)
    batch = (x, y, logits, slots.items, stage.keys_of(rows), start)
    return stage.attack, problem.threat_of(rows), *problem.placing.spread(batch)


def _shrink_if_it_pays(stage: Stage, problem: Problem, slots: Slots) -> Slots:
    """Move the last examples to half the slots, a quarter, ...

    That program has to be compiled, which costs as much as some tens of steps (of a large
    network few, of a small one many); it is done where it saves as many.
    """
    size, num_taken = len(slots.rows), int(slots.is_taken.sum())
    smaller, num_devices = size, problem.placing.num_devices
    while smaller % 2 == 0 and smaller // 2 >= max(num_taken, num_devices):
        smaller //= 2
    if len(slots.waiting) or smaller == size or smaller % num_devices:
        return slots
    num_items = stage.attack.num_items(problem.logits.shape[1])
    items_left = num_items - 1 - slots.items[slots.is_taken]
    steps_left = stage.inner.num_calls * (items_left + 1)
    steps_left = int((steps_left - slots.steps[slots.is_taken]).max())
    if steps_left * (1 - smaller / size) < _WORTH_COMPILING:
        return slots
    # Taken slots first, in order; the rest are empty.
    chosen = np.argsort(~slots.is_taken, kind="stable")[:smaller]
    state = problem.placing.take(slots.state, chosen)
    arrays = (slots.rows[chosen], slots.items[chosen], slots.steps[chosen])
    return Slots(*arrays, slots.waiting, state)


def _steps_per_round(
    attack: Any, problem: Problem, slots: Slots, shrinkage: int
) -> int:
    """Return how many steps one call of the compiled program takes.

    Fewer waste less after an example has broken or reached its end, more hide the time
    between calls. Two while the examples are in their first steps, which break most of
    those that break at all; then up to 6, as most slots have that many before them. As
    many times more when the slots have become fewer: a step is that much cheaper then. A
    query to the model is cheap and thousands are made.
    """
    num_steps = attack.num_calls
    if not problem.is_loop:
        return 1
    if attack.access != "gradients":
        return min(20, num_steps)
    done = slots.steps[slots.is_taken]
    most = shrinkage * (2 if np.median(done) < _FIRST_STEPS else 6)
    return int(np.clip(np.quantile(num_steps - done, 0.25, method="lower"), 1, most))


@functools.partial(jax.jit, static_argnames="is_loop", donate_argnames="state")
def _advance(attack, logits_fn, threat, state, num_steps, *, is_loop: bool):
    """Take steps; a slot whose item is over stands still.

    Returns:
      The state, its outcome, and how many steps each slot has taken.
    """
    logits_fn = fast_convolutions(logits_fn)

    def step(_, carry):
        state, taken = carry
        moved = attack.step(logits_fn, state, threat=threat)
        outcome = attack.outcome(state, threat=threat)
        is_over = outcome.is_broken | outcome.is_over
        return _select(is_over, state, moved), taken + ~is_over

    # Derived from the state, so that it is sharded like it.
    none = jnp.zeros_like(attack.outcome(state, threat=threat).is_over, jnp.int32)
    carry = (state, none)
    carry = jax.lax.fori_loop(0, num_steps, step, carry) if is_loop else step(0, carry)
    state, taken = carry
    return state, attack.outcome(state, threat=threat), taken


@functools.partial(jax.jit, donate_argnames="state")
def _restart(state, is_new, *arguments):
    return _select(is_new, start_items(*arguments), state)


@jax.jit
def start_items(attack, threat, x, y, logits, item, keys, start=None):
    given = dict(threat=threat, keys=keys, start=start)
    return attack.init_item(x, y, logits, item, **given)


@jax.jit
def _select(condition, a, b):
    return jax.tree.map(lambda u, v: batching.where(condition, u, v), a, b)
