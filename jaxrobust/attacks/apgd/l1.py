"""Auto-PGD for l_1: sparse steps whose density follows the best point found so far.

Croce & Hein 2021, arXiv:2103.01208, Algorithm 1, with the authors' schedule of shrinking
balls. No momentum; `APGD` calls this where the threat is `L1`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust._core import batching
from jaxrobust.attacks.apgd.top import keep_top, last_point
from jaxrobust.attacks.pgd import gradient, keep_best
from jaxrobust.threats import masked
from jaxrobust.types import Array, LogitsFn

# Constants of the authors' code; ratios of whole numbers, so that no rounding decides.
_FIRST_SHARE = (1, 5)  # of the coordinates moves in the first steps
_SHARE = (2, 3)  # of the coordinates in which the best point moved, later
_SPARSER = (19, 20)  # a smaller share of the old support resets the step size
_STEP_DECAY, _SMALLEST_STEP = 1.5, 1 / 10  # otherwise it decays, down to eps / 10


class State(NamedTuple):
    """What the next step needs; all leaves are `[B, ...]`."""

    x: Array  # clean inputs
    y: Any  # what the loss takes
    x_adv: Array  # the current iterate
    step: Array  # [B] int32, evaluations so far
    top: Array  # the iterate of the largest loss in this stage
    top_grad: Array  # the gradient there
    top_loss: Array  # [B]
    step_size: Array  # [B]
    num_moving: Array  # [B] int32, coordinates that a step moves
    support: Array  # [B] int32, coordinates in which `top` moved, at the last check
    waited: Array  # [B] int32, steps since the last check; -1 at the start of a stage
    best: Array  # the iterate to return: broken first, then the larger loss
    best_loss: Array  # [B]
    best_broken: Array  # [B] bool


class Stages(NamedTuple):
    """The schedule of eps; one number for each stage."""

    starts: tuple[int, ...]  # the first evaluation
    factors: tuple[float, ...]  # on eps
    periods: tuple[int, ...]  # steps between two checks


def stages(attack: Any) -> Stages:
    """Return the stages of an `APGD`, which share its `num_steps + 1` evaluations.

    The projection that begins a later stage counts as one of the steps, so that all norms
    cost the same; the authors' code makes it an extra evaluation.
    """
    starts, used = [], 0
    for _, share in attack.radii:
        starts.append(min(used, attack.num_steps))  # the last stage is never empty
        used += math.ceil(share * attack.num_steps)
    ends = [*starts[1:], attack.num_steps + 1]
    lengths = [end - start - 1 for start, end in zip(starts, ends, strict=True)]
    return Stages(
        starts=tuple(starts),
        factors=tuple(factor for factor, _ in attack.radii),
        periods=tuple(max(int(0.04 * length), 1) for length in lengths),
    )


def init(attack: Any, x: Array, y: Any, threat: Any, keys, start) -> State:
    """Return the state at x + N(0, 1) projected, or at `start`; evaluates nothing."""
    zero = batching.zeros(x)
    count = zero.astype(jnp.int32)
    plan = stages(attack)
    ball = _ball(threat, plan, count)
    if start is None:
        start = (x + batching.draw(jax.random.normal, keys, x)).astype(x.dtype)
    x_adv = ball.project(start, x)
    support = _num_moved(x_adv, x)
    num_moving = _part(_SHARE, support)
    if len(plan.factors) == 1:
        support = count + _num_free(threat, x)
        num_moving = _part(_FIRST_SHARE, support)
    return State(
        x=x,
        y=y,
        x_adv=x_adv,
        step=count,
        top=x_adv,
        top_grad=jnp.zeros_like(x),
        top_loss=zero - jnp.inf,
        step_size=zero + ball.eps,
        num_moving=num_moving,
        support=support,
        waited=count - 1,
        best=threat.project(x_adv, x),  # the start may lie outside the final ball
        best_loss=zero - jnp.inf,
        best_broken=zero > 0,
    )


def step(attack: Any, logits_fn: LogitsFn, state: State, threat: Any) -> State:
    """Evaluate the current iterate, then move or enter the next stage; one gradient."""
    plan = stages(attack)
    grad, _, loss, is_broken = gradient(attack.loss, logits_fn, state.x_adv, state.y)
    is_final = state.step >= plan.starts[-1]  # earlier iterates are outside the ball
    state = keep_best(state, jnp.where(is_final, loss, -jnp.inf), is_broken & is_final)
    state = keep_top(state, loss, grad)
    state, is_reset = _check_sparsity(state, threat, plan)
    x_adv = batching.where(is_reset, state.top, state.x_adv)
    grad = batching.where(is_reset, state.top_grad, grad)
    delta = _sparse_step(grad, state.num_moving, state.step_size, threat)
    moved = (x_adv + delta).astype(x_adv.dtype)
    following = state.step + 1
    stage = tuple(range(len(plan.starts)))
    is_new = _at(stage, plan, following) > _at(stage, plan, state.step)
    ball = _ball(threat, plan, following)
    x_adv = ball.project(batching.where(is_new, state.top, moved), state.x)
    support = _num_moved(x_adv, state.x)
    is_last = following == attack.num_steps
    x_adv = batching.where(is_last, last_point(state, threat), x_adv)
    return state._replace(
        x_adv=x_adv,
        step=following,
        top_loss=jnp.where(is_new, -jnp.inf, state.top_loss),
        step_size=jnp.where(is_new, ball.eps, state.step_size),
        num_moving=jnp.where(is_new, _part(_SHARE, support), state.num_moving),
        support=jnp.where(is_new, support, state.support),
        waited=jnp.where(is_new, -1, state.waited),
    )


def _check_sparsity(state: State, threat: Any, plan: Stages) -> tuple[State, Array]:
    """Adapt density and step size to the best point; return who goes back to it, `[B]`.

    Algorithm 1, lines 9 to 17: a best point that has become sparser resets the step
    size to eps, otherwise the step size decays.
    """
    waited = state.waited + 1
    is_check = waited == _at(plan.periods, plan, state.step)
    support = _num_moved(state.top, state.x)
    part, whole = _SPARSER
    is_sparser = is_check & (whole * support < part * state.support)
    eps = _ball(threat, plan, state.step).eps
    decayed = jnp.maximum(state.step_size / _STEP_DECAY, _SMALLEST_STEP * eps)
    step_size = jnp.where(is_sparser, eps, decayed)
    state = state._replace(
        step_size=jnp.where(is_check, step_size, state.step_size),
        num_moving=jnp.where(is_check, _part(_SHARE, support), state.num_moving),
        support=jnp.where(is_check, support, state.support),
        waited=jnp.where(is_check, 0, waited),
    )
    return state, is_sparser


def _sparse_step(grad: Array, num_moving: Array, step_size: Array, threat: Any):
    """Return the step of l_1 norm `step_size` along the signs of the largest gradients.

    At least one coordinate moves, and all that tie with the last one that does; a zero
    gradient moves nothing.
    """
    flat = batching.flatten(masked(threat, grad))
    flat = flat.astype(jnp.promote_types(grad.dtype, jnp.float32))
    magnitude = jnp.abs(flat)
    ordered = -jnp.sort(-magnitude, axis=-1)
    last = jnp.maximum(num_moving - 1, 0)[:, None]
    smallest = jnp.take_along_axis(ordered, last, axis=-1)
    sign = jnp.where(magnitude >= smallest, jnp.sign(flat), 0)
    count = jnp.maximum(jnp.sum(jnp.abs(sign), -1, keepdims=True), 1)
    return (step_size[:, None] * sign / count).reshape(grad.shape)


def _ball(threat: Any, plan: Stages, step: Array) -> Any:
    """Return the ball of each example's stage, `eps [B]`."""
    factor = _at(plan.factors, plan, step)
    return threat.with_eps(factor * jnp.asarray(threat.eps, factor.dtype))


def _at(values: tuple, plan: Stages, step: Array) -> Array:
    """Return, for each example, the value of its stage."""
    chosen = jnp.full_like(step, values[0], dtype=jnp.asarray(values).dtype)
    for start, value in zip(plan.starts, values, strict=True):
        chosen = jnp.where(step >= start, value, chosen)
    return chosen


def _part(share: tuple[int, int], count: Array) -> Array:
    """Return a share of a count, rounded up."""
    part, whole = share
    return (part * count + whole - 1) // whole


def _num_moved(x_adv: Array, x: Array) -> Array:
    return jnp.sum(batching.flatten(x_adv != x), -1).astype(jnp.int32)


def _num_free(threat: Any, x: Array) -> Array:
    """Return the number of coordinates that the mask leaves free, `[B]`."""
    is_free = masked(threat, jnp.ones(x.shape, bool))
    return jnp.sum(batching.flatten(is_free), -1).astype(jnp.int32)
