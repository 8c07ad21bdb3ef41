"""Auto-PGD: projected ascent with momentum that halves its steps when it stalls.

Croce & Hein 2020, arXiv:2003.01690, Algorithm 1, operation for operation as in the
authors' implementation, which differs from the paper in small things (noted below), but
for the last step (`top.last_point`). Every example keeps its own schedule, so that
examples at different steps may share a batch.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrobust import losses
from jaxrobust._core import batching, checks, pytree
from jaxrobust.attacks._base import Stepped, check_count
from jaxrobust.attacks.apgd import halving, l1
from jaxrobust.attacks.apgd.top import keep_top, last_point
from jaxrobust.attacks.cost import Cost
from jaxrobust.attacks.pgd import best_of, gradient, keep_best
from jaxrobust.threats import L2, masked
from jaxrobust.types import Array, LogitsFn, Loss, Outcome, Threat

# Weight of the new direction against the old one, eq. (2) and section 4.1.
_ALPHA = 0.75


class State(NamedTuple):
    """What the next step needs for `Linf`, `L2` and other norms; leaves are `[B, ...]`."""

    x: Array  # clean inputs
    y: Any  # what the loss takes
    x_adv: Array  # the current iterate
    previous: Array  # the iterate before it
    step: Array  # [B] int32, evaluations so far
    top: Array  # the iterate of the largest loss, where the ascent restarts
    top_grad: Array  # the gradient there
    top_loss: Array  # [B]
    schedule: halving.Schedule  # when to halve the step
    best: Array  # the iterate to return: broken first, then the larger loss
    best_loss: Array  # [B]
    best_broken: Array  # [B] bool


@pytree.register
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class APGD(Stepped):
    """Projected ascent with momentum, from a random start; needs no step size.

    Croce & Hein 2020, arXiv:2003.01690; for `L1` Croce & Hein 2021, arXiv:2103.01208. The
    step starts at 2 eps and is halved, going back to the best iterate, at
    checkpoints where the loss has grown too seldom. The last step goes to the maximiser of
    the loss linearised at the best iterate. A part of AutoAttack.

    Where it differs from the authors' code besides that last step: a gradient of any size
    but zero gives a step of full length (theirs, divided by its norm + 1e-12, fades where
    the gradient of the DLR or of a saturated cross-entropy is that small); where it is zero
    only the momentum moves on, in both. For `L1` the projection puts a coordinate that is
    not used back to `x` exactly, and the support that sets the sparsity of the steps counts
    those that differ at all; theirs comes back up to rounding and may still count.

    Args:
      num_steps: Number of gradient steps; the checkpoints are placed relative to it.
      loss: Per-example loss to maximise: `cross_entropy`, `dlr`, or `dlr_targeted` (whose
        `y` is a pair, see `Targets`).
      rho: Halve the step if at most this share of the steps increased the loss.
      radii: For `L1` only: stages (factor on eps, share of the steps), each starting
        from the best point of the one before; the last factor must be 1.
        `((1.0, 1.0),)` stays in the ball all the time.

    Raises:
      ValueError: On impossible settings.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> weights = jnp.array([[1.0, -1.0], [0.0, 3.0]])
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> attack = APGD(num_steps=10)
      >>> x_adv = attack(lambda x: x @ weights, x, y, threat=jr.Linf(0.25),
      ...                key=jax.random.key(0))
      >>> print(x_adv)
      [[0.25 0.75]]
    """

    papers = ("croce2020autoattack",)

    num_steps: int = pytree.static(100)
    loss: Loss = pytree.static(losses.cross_entropy)
    rho: ArrayLike = 0.75
    radii: tuple[tuple[float, float], ...] = pytree.static(
        ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
    )

    def __post_init__(self):
        checks.check_loss(self.loss)
        _check(self)

    needs_key = True

    @property
    def num_calls(self) -> int:
        """The steps, and one more: the start is evaluated too."""
        return self.num_steps + 1

    def cost(self, num_classes: int) -> Cost:
        return Cost(gradients=1, forwards=0)

    def init(
        self, x: Array, y: Any, *, threat: Threat, keys: Any, start: Array | None = None
    ) -> State | l1.State:
        if threat.order == 1:
            return l1.init(self, x, y, threat, keys, start)
        if start is None:
            start = _random_start(threat, keys, x)
        x_adv = _project(threat, start, x)
        zero = batching.zeros(x)
        count = zero.astype(jnp.int32)
        return State(
            x=x,
            y=y,
            x_adv=x_adv,
            previous=x_adv,
            step=count,
            top=x_adv,
            top_grad=jnp.zeros_like(x),
            top_loss=zero - jnp.inf,
            schedule=halving.init(
                zero + 2 * jnp.asarray(threat.eps, zero.dtype), self.num_steps
            ),
            best=x_adv,
            best_loss=zero - jnp.inf,
            best_broken=zero > 0,
        )

    def step(
        self, logits_fn: LogitsFn, state: State | l1.State, *, threat: Threat
    ) -> State | l1.State:
        """Evaluate the current iterate of every example, then move it; one gradient."""
        if isinstance(state, l1.State):
            return l1.step(self, logits_fn, state, threat)
        grad, _, loss, is_broken = gradient(self.loss, logits_fn, state.x_adv, state.y)
        loss = loss.astype(state.best_loss.dtype)
        state = keep_top(keep_best(state, loss, is_broken), loss, grad)
        schedule, is_halved = halving.check(
            state.schedule, state.step, loss, state.top_loss, self.rho, self.num_steps
        )
        x_adv = batching.where(is_halved, state.top, state.x_adv)
        grad = batching.where(is_halved, state.top_grad, grad)
        delta = _steepest(threat, grad, x_adv, schedule.step_size)
        ascended = _project(threat, (x_adv + delta).astype(x_adv.dtype), state.x)
        # Eq. (2). After a restart `x_adv - previous` is, as in the authors' code, the way
        # from the iterate before the last one to the best one.
        alpha = batching.expand(jnp.where(state.step > 0, _ALPHA, 1.0), x_adv)
        moved = (
            x_adv + alpha * (ascended - x_adv) + (1 - alpha) * (x_adv - state.previous)
        )
        moved = _project(threat, moved.astype(x_adv.dtype), state.x)
        is_last = state.step + 1 == self.num_steps
        return state._replace(
            x_adv=batching.where(is_last, last_point(state, threat), moved),
            previous=x_adv,
            step=state.step + 1,
            schedule=schedule,
        )

    def outcome(self, state: State | l1.State, *, threat: Threat) -> Outcome:
        return best_of(state, state.step >= self.num_calls, threat)

    def iterate(self, state: State | l1.State, *, threat: Threat) -> Array:
        """Return the current iterate; for l_1 that of a larger ball is drawn in."""
        return threat.project(state.x_adv, state.x)


def _random_start(threat: Threat, keys: Array, x: Array) -> Array:
    """Return x + eps t / ||t||: on the sphere, not yet in the box.

    Other norms than l_inf and l_2 start where the threat samples.
    """
    if threat.order == jnp.inf:
        uniform = functools.partial(jax.random.uniform, minval=-1.0)
        noise = masked(threat, batching.draw(uniform, keys, x))
        delta = batching.expand(threat.eps, x) * batching.unit_max(noise)
    elif threat.order == 2:
        noise = batching.draw(jax.random.normal, keys, x)
        delta = _steepest(threat, noise, x, threat.eps)
    else:
        return threat.sample(keys, x)
    return (x + delta).astype(x.dtype)


def _steepest(threat: Threat, grad: Array, x: Array, step_size: ArrayLike) -> Array:
    """Return the ascent step; for l_2 it does not look at the box, as in `_project`."""
    if threat.order == 2:
        threat = L2(threat.eps, bounds=None, mask=threat.mask)
    return threat.steepest(grad, x, step_size)


def _project(threat: Threat, x_adv: Array, x: Array) -> Array:
    """Return a feasible point near `x_adv`.

    For l_2 the authors' code scales to the ball and then clips to the box. Where the box is
    active the exact projection is another point, and the iterates would part from those
    of the published attack after one step; so the same is done here. Of a
    point in the ball, what `project` leaves to do is to clip it.
    """
    if threat.order == 2:
        norm = threat.distance(x_adv, x)
        scale = jnp.minimum(1, jnp.asarray(threat.eps) / jnp.where(norm > 0, norm, 1))
        x_adv = (x + batching.expand(scale, x) * (x_adv - x)).astype(x.dtype)
    return threat.project(x_adv, x)


def _check(attack: APGD) -> None:
    """Reject impossible settings."""
    check_count(attack, "num_steps")
    if isinstance(attack.rho, int | float) and not 0 <= attack.rho <= 1:
        raise ValueError(
            f"APGD(rho={attack.rho}): a share of steps in [0, 1] is needed."
        )
    radii = attack.radii
    is_list = isinstance(radii, tuple) and all(
        isinstance(stage, tuple) and len(stage) == 2 and min(stage) > 0
        for stage in radii
    )
    if not is_list or not radii or radii[-1][0] != 1:
        raise ValueError(
            f"APGD(radii={radii}): a tuple of stages (factor on eps, share of "
            "the steps) is needed whose last factor is 1, e.g. ((3.0, 0.3), (2.0, 0.3), "
            "(1.0, 0.4))."
        )
