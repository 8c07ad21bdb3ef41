"""Evaluation of random models: points are judged on draws that no attack has seen.

An attack that looks at a random model often enough meets a lucky draw, and a point that is
kept for it is worth nothing on the next. So no example leaves early, and three sets of
draws are kept apart: those of the attack; a second one, by which the best of its points is
chosen (the clean point is one of them); a third one, on which the chosen point is reported.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import losses
from jaxrobust._core import batching, checks, predictions, programs
from jaxrobust._cpu.convolution import fast_convolutions
from jaxrobust.attacks.cost import Cost
from jaxrobust.evaluation.queue import _forward, _slots, _stages
from jaxrobust.evaluation.queue._budget import Budget, Stopped
from jaxrobust.evaluation.queue._problem import REACHED, Found, Points, Problem, Stage
from jaxrobust.evaluation.queue._saved import Saved, StateFile
from jaxrobust.surrogates.expectation import Expectation
from jaxrobust.types import Array, LogitsFn

# Predictions of each point, for the choice and again for the report.
NUM_DRAWS = 20

# What the draws are for; folded into the key of the model.
_CHOICE, _REPORT = 0x63686F69, 0x7265706F


def is_random(logits_fn: LogitsFn) -> bool:
    """Whether the evaluation has to reckon with luck."""
    return isinstance(logits_fn, Expectation) and not logits_fn.fixed


def settings(model: Expectation) -> dict[str, Any]:
    """Return what a report says of a random model."""
    return {
        "fresh_draws": NUM_DRAWS,
        "draws_per_prediction": model.num_deployed or model.num_samples,
        "average": model.average,
    }


def check(logits_fn: LogitsFn, x: Any, *, individually: bool) -> None:
    """Refuse what cannot be said of a random model; warn of one that is hidden."""
    if is_random(logits_fn):
        if individually:
            raise ValueError(
                "individually=True: of a random model each point is judged on fresh draws "
                "once all attacks have run. Call evaluate once for each attack."
            )
    elif not isinstance(logits_fn, Expectation) and programs.is_random(logits_fn, x):
        checks.warn_user(
            "logits_fn draws random numbers. If they change with x, an example may count "
            "as broken by one lucky draw: pass the value of jr.randomized or jr.eot "
            "itself as logits_fn, so that points are judged on fresh draws. If the draws "
            "are always the same, nothing is wrong."
        )


def run(
    stages: list[Stage],
    problem: Problem,
    chosen: np.ndarray,
    size: int,
    file: StateFile,
    bar: Any,
    budget: Budget,
) -> tuple[Found, np.ndarray, Stopped | None]:
    """Run all stages on all chosen examples, or go on from the state file.

    Args:
      stages: The attacks.
      problem: What is attacked.
      chosen: Which examples to attack `[N]`.
      size: Examples at a time.
      file: The state file, written between two batches.
      bar: What is shown on the way, a `ProgressBar`.
      budget: How long to go on.

    Returns:
      What was found, for each example the point that is wrong in the most draws, and
      whether an attack said that it had broken it (`worth`); in which
      share of the report's draws it is right after each stage `[num_stages, N]`; and where
      it stopped, None at the end.
    """
    saved = file.load(problem, stages)
    if saved is None:
        share_after = np.zeros((len(stages), len(problem.y)))
        points, found = Points.nothing(problem.x), Found.nothing(problem.x)
        nothing = np.full(
            share_after.shape, -np.inf, np.float32
        )  # all stages are for all
        saved = Saved(0, None, points, found, share_after, nothing)
    rows, found = np.flatnonzero(chosen), saved.found
    for stage in stages[saved.number :]:
        saved.slots = saved.slots or _slots.line(rows)
        is_over = _run_stage(stage, problem, saved, size, len(rows), file, bar, budget)
        rows_left, is_last = saved.slots.rows_left, stage.number + 1 == len(stages)
        if not len(rows_left):
            if len(stages) > 1:
                figures = measure(problem, found.x_adv, size)
                is_right = figures["draws_adv"] == problem.y[:, None]
                saved.alone[stage.number] = is_right.mean(1)
            saved.number, saved.slots = stage.number + 1, None
        file.save(saved, problem, now=file.is_kept or is_over)
        if is_over and not (is_last and not len(rows_left)):
            is_left = chosen.copy()
            if is_last:
                is_left &= np.isin(np.arange(len(chosen)), rows_left)
            where = Stopped(saved.number, stage.number + 1, is_left)
            return found, saved.alone[: saved.number], where
    return found, saved.alone, None


def _run_stage(
    stage: Stage,
    problem: Problem,
    saved: Saved,
    size: int,
    num_rows: int,
    file: StateFile,
    bar: Any,
    budget: Budget,
) -> bool:
    """Run a stage, or the rest of it; returns whether the time is over."""
    found, line = saved.found, saved.slots
    assert line is not None
    bar.stage(stage.name, num_rows)
    bar.advance(num_rows - len(line.waiting))
    while len(line.waiting):
        batch, count = next(_forward.batches(line.waiting[:, 0], size))
        best, is_new = _run_batch(stage, problem, batch, found)
        kept = batch[:count]
        found.x_adv[kept] = best[:count]
        found.broken_by[kept[is_new[:count]]] = stage.number
        line.waiting = line.waiting[count:]
        bar.advance(count)
        file.save(saved, problem)
        if budget.is_over():
            return True
    return False


class _Score(NamedTuple):
    """How much a point is worth; the first counts, the second where it is equal."""

    hits: Array  # [B] int32, in how many draws the goal is reached
    loss: Array  # [B], the mean over the draws

    def is_above(self, other: "_Score") -> Array:
        """Whether each point is worth more than the other."""
        is_equal = self.hits == other.hits
        return (self.hits > other.hits) | (is_equal & (self.loss > other.loss))


def _run_batch(
    stage: Stage, problem: Problem, rows: np.ndarray, found: Found
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best points of a batch so far, and where this stage has found them."""
    arrays = (problem.x, stage.y, problem.logits, stage.goal_y, problem.y, found.x_adv)
    arrays = jax.tree.map(lambda leaf: leaf[rows], arrays)
    x, y, logits, *goal, best = problem.placing.spread(arrays)
    given = x, y, logits, goal[0], problem.placing.spread(stage.keys_of(rows))
    score, is_new = _score(stage, problem, best, goal), jnp.zeros(len(rows), bool)
    found.count(Cost(0, NUM_DRAWS), len(rows), len(rows))
    for point, is_claimed, cost in _points(stage, problem, rows, *given):
        if is_claimed is not None:
            claimed = rows[problem.placing.fetch(is_claimed)]
            found.worth[claimed] = REACHED
        own = _score(stage, problem, point, goal)
        is_better = own.is_above(score)
        best, score = _choose(is_better, (point, own), (best, score))
        is_new |= is_better
        found.count(cost + Cost(0, NUM_DRAWS), len(rows), len(rows))
    return jax.tree.map(np.array, problem.placing.fetch((best, is_new)))


def _points(
    stage: Stage, problem: Problem, rows, x, y, logits, goal_y, keys
) -> Iterator[tuple[Array, Array | None, Cost]]:
    """Yield every point that the attack has to offer, and what it took to get there.

    Between the two, of its results: where it says that it has reached its goal.

    Of a state machine: for each restart or target its last two iterates (the last step of
    `APGD` is a leap), which owe nothing to one draw, and what it thinks its best.
    """
    threat = problem.threat_of(rows)
    if stage.inner is None:
        arguments = stage.attack, problem.logits_fn, threat, x, y, goal_y, keys
        cost = stage.attack.total_cost(logits.shape[1]) or Cost(0, 0)
        # One forward pass beyond the attack's own says what it broke.
        points, is_claimed = _stages.attack_batch(*arguments, goal=stage.goal)
        yield points, is_claimed, cost + Cost(0, 1)
        return
    inner, num_classes = stage.inner, logits.shape[1]
    last = inner.num_calls
    for item in range(stage.attack.num_items(num_classes)):
        number = problem.placing.spread(np.full(len(rows), item, np.int32))
        start = None if problem.start is None else problem.start[rows]
        given = x, y, logits, number, keys, problem.placing.spread(start)
        state = _slots.start_items(stage.attack, threat, *given)
        done = 0
        for stop in sorted({max(last - 2, 0), max(last - 1, 0), last}):
            state = _advance(inner, problem, threat, state, stop - done)
            cost = inner.cost(num_classes) * (stop - done)
            done = stop
            if stop == last:
                outcome = inner.outcome(state, threat=threat)
                yield outcome.x_adv, outcome.is_broken, cost
            else:
                yield inner.iterate(state, threat=threat), None, cost


def _advance(attack: Any, problem: Problem, threat: Any, state: Any, num_steps: int):
    """Take steps, whatever breaks on the way."""
    if problem.is_loop:
        return _steps(attack, problem.logits_fn, threat, state, num_steps)
    for _ in range(num_steps):
        state = _step(attack, problem.logits_fn, threat, state)
    return state


@jax.jit
def _steps(attack, logits_fn, threat, state, num_steps):
    logits_fn = fast_convolutions(logits_fn)
    return jax.lax.fori_loop(
        0,
        num_steps,
        lambda _, state: attack.step(logits_fn, state, threat=threat),
        state,
    )


@jax.jit
def _step(attack, logits_fn, threat, state):
    return attack.step(fast_convolutions(logits_fn), state, threat=threat)


@jax.jit
def _choose(condition, a, b):
    return jax.tree.map(lambda u, v: batching.where(condition, u, v), a, b)


def _fresh(model: Expectation, purpose: int, number: int) -> Expectation:
    """Return the model as it is deployed, with draws of its own."""
    key = jax.random.fold_in(jax.random.fold_in(model.key, purpose), number)
    num_samples = model.num_deployed or model.num_samples
    return dataclasses.replace(model, key=key, num_samples=num_samples)


def _score(stage: Stage, problem: Problem, point: Array, goal: list) -> _Score:
    """Return what a point is worth under the draws of the choice."""
    models = (_fresh(problem.logits_fn, _CHOICE, r) for r in range(NUM_DRAWS))
    found = [_look(model, point, *goal, goal=stage.goal) for model in models]
    return jax.tree.map(lambda *draws: sum(draws), *found)


@functools.partial(jax.jit, static_argnames="goal")
def _look(model, point, y, labels, *, goal) -> _Score:
    logits = predictions.wide(model(point))
    is_target = losses.takes(goal) == losses.TARGETS
    loss = goal(logits, y) if is_target else losses.margin(logits, labels)
    is_reached = losses.is_broken(goal, logits, y).astype(jnp.int32)
    return _Score(is_reached, jnp.where(jnp.isfinite(loss), loss, 0))


def measure(problem: Problem, x_adv: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Classify clean inputs and returned points; the figures of the report, each `[N]`.

    `draws` and `draws_adv`, `[N, K]`, are the predictions of each of K fresh draws; the
    prediction is the most frequent of them.
    """
    models = [_fresh(problem.logits_fn, _REPORT, r) for r in range(NUM_DRAWS)]

    def figures(x_adv, x, y, rows):
        clean, attacked = (
            _summary([_classify(model, points, y) for model in models])
            for points in (x, x_adv)
        )
        return {
            **{name: clean[name] for name in ("predicted", "draws")},
            **{name: clean[name] for name in ("confidence", "loss")},
            "is_number": attacked.pop("is_number"),
            **{f"{name}_adv": values for name, values in attacked.items()},
            "distance": _distance(problem.threat_of(rows), x_adv, x),
        }

    batch = (x_adv, problem.x, problem.y, np.arange(len(problem.y)))
    return _forward.over_batches(figures, batch, problem.placing, size, unpack=True)


@jax.jit
def _classify(model, x, y) -> dict[str, Array]:
    logits = predictions.wide(model(x))
    return {
        "draws": predictions.predict(logits),
        "probs": jax.nn.softmax(logits),
        "loss": losses.cross_entropy(logits, y),
        "is_number": predictions.is_number(logits),
    }


@jax.jit
def _summary(found: list[dict[str, Array]]) -> dict[str, Array]:
    draws, probs, loss, is_number = (
        jnp.stack([draw[name] for draw in found], 1)
        for name in ("draws", "probs", "loss", "is_number")
    )
    num_classes = probs.shape[-1]
    # What is not a number has class -1, counted as one class more.
    counts = jnp.sum(jax.nn.one_hot(draws % (num_classes + 1), num_classes + 1), 1)
    most = jnp.argmax(counts, -1)
    return {
        "draws": draws,
        "predicted": jnp.where(most == num_classes, -1, most),
        "confidence": jnp.max(jnp.mean(probs, 1), -1),
        "loss": jnp.mean(loss, 1),
        "is_number": jnp.all(is_number, 1),
    }


@jax.jit
def _distance(threat, x_adv, x):
    return threat.distance(x_adv, x)
