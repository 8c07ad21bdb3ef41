"""The published Auto-PGD in NumPy, kept apart from the library to compare it with.

The loops and arrays are those of the algorithm's description (whole histories of losses,
one batch at one step), not those of the library. Inputs are `[B, d]` in the box [0, 1].
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# A point [B, d] -> its loss [B], gradient [B, d] and whether it is misclassified [B].
Evaluate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


class Trace(NamedTuple):
    """What happened, by evaluation: the start, then one for each step."""

    points: np.ndarray  # [T + 1, B, d], the points evaluated
    step_sizes: np.ndarray  # [T + 1, B], in force after the evaluation
    best: np.ndarray  # [B, d], the point of the largest loss
    is_broken: np.ndarray  # [B], misclassified at any point


def _rows(norms: np.ndarray) -> np.ndarray:
    return norms[:, None]


def _project(points: np.ndarray, x: np.ndarray, eps: float, norm: str) -> np.ndarray:
    if norm == "linf":
        return np.clip(np.clip(points, x - eps, x + eps), 0, 1)
    delta = points - x
    length = _rows(np.sqrt((delta**2).sum(1)))
    return np.clip(x + delta / (length + 1e-12) * np.minimum(eps, length), 0, 1)


def apgd(
    evaluate: Evaluate,
    x: np.ndarray,
    start: np.ndarray,
    eps: float,
    norm: str,
    num_steps: int = 100,
    rho: float = 0.75,
) -> Trace:
    """Run Auto-PGD for l_inf or l_2 from a given start."""
    batch = len(x)
    period = max(int(0.22 * num_steps), 1)
    shortest = max(int(0.06 * num_steps), 1)
    decrease = max(int(0.03 * num_steps), 1)
    losses = np.zeros((num_steps, batch))
    point = np.clip(start, 0, 1)
    old = point.copy()
    loss, grad, is_broken = evaluate(point)
    best, best_loss, best_grad = point.copy(), loss.copy(), grad.copy()
    loss_at_check, was_reduced = best_loss.copy(), np.ones(batch, bool)
    step = np.full(batch, 2.0 * eps)
    points, steps, since = [point.copy()], [step.copy()], 0
    for i in range(num_steps):
        momentum, old = point - old, point.copy()
        a = 0.75 if i > 0 else 1.0
        if norm == "linf":
            direction = np.sign(grad)
        else:
            direction = grad / (_rows(np.sqrt((grad**2).sum(1))) + 1e-12)
        z = _project(point + _rows(step) * direction, x, eps, norm)
        point = _project(point + (z - point) * a + momentum * (1 - a), x, eps, norm)
        loss, grad, wrong = evaluate(point)
        points.append(point.copy())
        is_broken |= wrong
        losses[i] = loss
        better = loss > best_loss
        best[better], best_loss[better] = point[better], loss[better]
        best_grad[better] = grad[better]
        since += 1
        if since == period:
            increases = np.zeros(batch)
            for j in range(i, i - period, -1):  # at the first check j - 1 reaches -1
                increases += losses[j] > losses[j - 1]
            reduce = increases <= period * rho
            reduce |= ~was_reduced & (loss_at_check >= best_loss)
            was_reduced, loss_at_check = reduce.copy(), best_loss.copy()
            step[reduce] /= 2
            point, grad = point.copy(), grad.copy()
            point[reduce], grad[reduce] = best[reduce], best_grad[reduce]
            since, period = 0, max(period - decrease, shortest)
        steps.append(step.copy())
    return Trace(np.stack(points), np.stack(steps), best, is_broken)


def project_l1(points: np.ndarray, x: np.ndarray, eps: float) -> np.ndarray:
    """Return the nearest points of the l_1 ball and the box, by bisection in float64."""
    delta = points - x
    room = np.where(delta > 0, 1 - x, x)
    low, high = np.zeros(len(x)), np.abs(delta).max(1)
    for _ in range(100):
        middle = (low + high) / 2
        kept = np.clip(np.abs(delta) - _rows(middle), 0, room).sum(1)
        low, high = (
            np.where(kept > eps, middle, low),
            np.where(kept > eps, high, middle),
        )
    inside = np.clip(np.abs(delta), 0, room)
    shrunk = np.clip(np.abs(delta) - _rows(high), 0, room)
    is_inside = _rows(inside.sum(1) <= eps)
    return x + np.sign(delta) * np.where(is_inside, inside, shrunk)


def apgd_l1(
    evaluate: Evaluate,
    x: np.ndarray,
    start: np.ndarray,
    eps: float,
    num_steps: int,
    *,
    is_fresh: bool,
) -> Trace:
    """Run one stage of Auto-PGD for l_1 from a given start.

    `is_fresh`: the sparsity of the first steps is the default instead of the start's.
    """
    batch, d = x.shape
    period = max(int(0.04 * num_steps), 1)
    point = project_l1(start, x, eps)
    topk, old_count = np.full(batch, 0.2), np.full(batch, float(d))
    if not is_fresh:
        old_count = (point != x).sum(1).astype(float)
        topk = old_count / d / 1.5
    loss, grad, is_broken = evaluate(point)
    best, best_loss, best_grad = point.copy(), loss.copy(), grad.copy()
    step = np.full(batch, float(eps))
    points, steps, since = [point.copy()], [step.copy()], 0
    for _ in range(num_steps):
        # 1e-9: (1 - 1 / 3) * 12 is 8 and not 7.999...
        index = np.clip((1.0 - topk) * d + 1e-9, 0, d - 1).astype(int)
        threshold = np.sort(np.abs(grad), axis=1)[np.arange(batch), index]
        sparse = np.sign(grad) * (np.abs(grad) >= _rows(threshold))
        moved = point + _rows(step) * sparse / (_rows(np.abs(sparse).sum(1)) + 1e-10)
        point = project_l1(moved, x, eps)
        loss, grad, wrong = evaluate(point)
        points.append(point.copy())
        is_broken |= wrong
        better = loss > best_loss
        best[better], best_loss[better] = point[better], loss[better]
        best_grad[better] = grad[better]
        since += 1
        if since == period:
            count = (best != x).sum(1).astype(float)
            sparser = count < 0.95 * old_count
            topk, old_count = count / d / 1.5, count
            step[sparser] = eps
            step[~sparser] /= 1.5
            step = np.clip(step, eps / 10, eps)
            point, grad = point.copy(), grad.copy()
            point[sparser], grad[sparser] = best[sparser], best_grad[sparser]
            since = 0
        steps.append(step.copy())
    return Trace(np.stack(points), np.stack(steps), best, is_broken)


def apgd_l1_stages(
    evaluate: Evaluate,
    x: np.ndarray,
    start: np.ndarray,
    eps: float,
    lengths: tuple[int, ...],
    factors: tuple[float, ...] = (3.0, 2.0, 1.0),
) -> Trace:
    """Run stages in shrinking balls, each from the best point of the one before."""
    assert math.isclose(factors[-1], 1)
    traces = []
    for factor, length in zip(factors, lengths, strict=True):
        trace = apgd_l1(evaluate, x, start, factor * eps, length, is_fresh=False)
        traces.append(trace)
        start = trace.best
    points = np.concatenate([trace.points for trace in traces])
    steps = np.concatenate([trace.step_sizes for trace in traces])
    return Trace(points, steps, traces[-1].best, traces[-1].is_broken)
