"""The Square attack: random search with square windows, without gradients."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrobust import losses
from jaxrobust._core import batching, checks, pytree
from jaxrobust.attacks._base import Stepped, check_count
from jaxrobust.attacks.cost import Cost
from jaxrobust.attacks.pgd import best_of, is_better, value_of
from jaxrobust.attacks.square import layout, windows
from jaxrobust.threats import masked
from jaxrobust.types import Array, LogitsFn, Loss, Outcome, Threat


class State(NamedTuple):
    """What the next step needs; all leaves are `[B, ...]`."""

    x: Array  # clean inputs
    y: Any  # what the loss takes
    keys: Array  # [B]
    step: Array  # [B] int32, queries made
    proposal: Array  # what the next query evaluates
    best: Array  # the best point so far
    best_loss: Array  # [B]
    best_broken: Array  # [B] bool


@pytree.register
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Square(Stepped):
    """Random search: perturb a square window, keep it if the loss grows.

    Andriushchenko et al. 2020, arXiv:1912.00049; for `L1` Croce & Hein 2021,
    arXiv:2103.01208. Needs the outputs of the model only, so that masked gradients do not
    stop it. An example that is broken stays as it is.

    Inputs are images, channels last or first. A vector `[B, d]` is one row of d pixels, a
    signal `[B, T, C]` one row of T: windows are segments. Where the shape does not show
    which axis holds the channels, `channel_axis` must say it. Both layouts give the same,
    for `L2` and `L1` up to the rounding of sums.

    Where it differs from the implementation in AutoAttack: every example has its own
    windows; the last row and column are reached too; where a square does not fit, the
    window becomes a rectangle of the same area; `L2` moves mass within each channel (as the
    paper does), `L1` perturbations shorter than eps are scaled up to it; points are
    projected exactly on ball and bounds; the first query is one of `num_queries`, not one
    more.

    Args:
      num_queries: Evaluations of the model for each example.
      p_init: Fraction of the pixels that the first windows cover, in (0, 1].
      loss: Per-example loss to maximise; `jr.losses.targeted(loss)` takes `y` as target.
      rescale_schedule: Shrink the windows by the fraction of `num_queries` that is used,
        instead of by their number, as the paper does. AutoAttack does not.
      channel_axis: The axis of the batch that holds the channels: -1 for `[B, H, W, C]`, 1
        for `[B, C, H, W]`, None if every axis is one of pixels (`[B, H, W]`). "auto": the
        first or the last axis of an example, where it has at most 4 entries and the other
        more; none of a vector. Other shapes are refused.

    Raises:
      ValueError: If `num_queries` is below 1, `p_init` outside (0, 1], `channel_axis` no
        axis of `x`, or "auto" and the shape of `x` ambiguous.
      TypeError: If the order of the threat is not inf, 2 or 1.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> weights = jnp.array([[1.0, -1.0], [0.0, 3.0]])
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> attack = Square(num_queries=50)
      >>> print(attack(lambda x: x @ weights, x, y, threat=jr.Linf(0.25),
      ...              key=jax.random.key(0)))
      [[0.25 0.75]]
    """

    papers = ("andriushchenko2020",)
    access = "scores"

    num_queries: int = pytree.static(5000)
    p_init: ArrayLike = 0.8
    loss: Loss = pytree.static(losses.margin)
    rescale_schedule: bool = pytree.static(False)
    channel_axis: layout.ChannelAxis = pytree.static("auto")

    def __post_init__(self):
        checks.check_loss(self.loss)
        layout.check(self.channel_axis, "Square")
        _check(self)

    needs_key = True

    @property
    def num_calls(self) -> int:
        return self.num_queries

    def cost(self, num_classes: int) -> Cost:
        return Cost(gradients=0, forwards=1)

    def init(
        self, x: Array, y: Any, *, threat: Threat, keys: Any, start: Array | None = None
    ) -> State:
        """Return the state whose first proposal is random stripes, or `start`."""
        if start is None:
            start = self._start(batching.fold_in(keys, 0), x, threat)
        else:
            start = threat.project(start, x)
        zero = batching.zeros(x)
        return State(
            x=x,
            y=y,
            keys=keys,
            step=zero.astype(jnp.int32),
            proposal=start,
            best=start,
            best_loss=zero - jnp.inf,
            best_broken=zero > 0,
        )

    def step(self, logits_fn: LogitsFn, state: State, *, threat: Threat) -> State:
        """Evaluate each proposal, keep it if it is better, draw the next one."""
        loss, is_broken = value_of(self.loss, logits_fn, state.proposal, state.y)
        accepted = is_better(is_broken, loss, state.best_broken, state.best_loss)
        accepted &= ~state.best_broken
        state = state._replace(
            best=batching.where(accepted, state.proposal, state.best),
            best_loss=jnp.where(accepted, loss, state.best_loss),
            best_broken=state.best_broken | (accepted & is_broken),
        )
        # `init` has used 0.
        keys = jax.vmap(jax.random.fold_in)(state.keys, state.step + 1)
        fraction = self.fraction(state.step)
        drawn = self._next(keys, fraction, state.best, state.x, threat)
        return state._replace(
            proposal=batching.where(state.best_broken, state.best, drawn),
            step=state.step + 1,
        )

    def outcome(self, state: State, *, threat: Threat) -> Outcome:
        """Return the best point; of one that is broken nothing changes any more."""
        is_over = state.best_broken | (state.step >= self.num_calls)
        return best_of(state, is_over, threat)

    def fraction(self, step: Array) -> Array:
        """Return the fraction p of the pixels in the window that follows query `step`.

        Halved after queries 10, 50, 200, ... (the paper's schedule for 10,000 of them).
        """
        num_halvings = sum((step > limit).astype(float) for limit in self._limits)
        return jnp.asarray(self.p_init, float) * 0.5**num_halvings

    @property
    def _limits(self) -> list[int]:
        limits = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
        if not self.rescale_schedule:
            return list(limits)
        # floor(10000 step / n) > limit, solved for the whole number `step`.
        return [-(-(limit + 1) * self.num_queries // 10_000) - 1 for limit in limits]

    def _start(self, keys: Array, x: Array, threat: Threat) -> Array:
        """Return the first proposals: stripes of +-eps for l_inf, tiles of bumps else."""
        p, axis = _norm(threat), layout.channels_of(x.shape, self.channel_axis)
        shape = layout.to_images(x, axis).shape
        if p is None:
            signs = jax.vmap(lambda key: windows.stripes(key, shape[1:]))(keys)
            signs = layout.from_images(jnp.broadcast_to(signs, shape), x.shape, axis)
            delta = batching.expand(threat.eps, x) * signs
        else:
            tiles = jax.vmap(lambda key: windows.tiles(key, shape[1:], p))(keys)
            delta = _fill(layout.from_images(tiles, x.shape, axis), p, threat)
        return threat.project((_wide(x) + delta).astype(x.dtype), x)

    def _next(self, keys, fraction: Array, best: Array, x: Array, threat) -> Array:
        """Return the next proposals, each a change of the best point in a window."""
        p, axis = _norm(threat), layout.channels_of(x.shape, self.channel_axis)
        delta = layout.to_images(_wide(best) - _wide(x), axis)
        if p is None:
            shape = delta.shape[1:]
            signs = jax.vmap(lambda k, f: windows.square(k, f, shape))(keys, fraction)
            signs = layout.from_images(signs, x.shape, axis)
            # From -eps to eps and back: the projection takes what is too much.
            moved = _wide(best) + 2 * batching.expand(threat.eps, x) * signs
        else:
            eps = jnp.broadcast_to(jnp.asarray(threat.eps, delta.dtype), len(x))
            delta = jax.vmap(windows.move_mass, (0, 0, 0, 0, None))(
                keys, fraction, delta, eps, p
            )
            delta = layout.from_images(delta, x.shape, axis)
            moved = _wide(x) + _fill(delta, p, threat)
        return threat.project(moved.astype(x.dtype), x)


def _fill(delta: Array, p: int, threat: Threat) -> Array:
    """Scale what the mask leaves of `delta` to fill the ball.

    An l_1 perturbation that is too large is left to the projection, which takes the same
    from every coordinate and so keeps few of them (as in the reference implementation).
    """
    delta = masked(threat, delta)
    norm = windows.mass(delta, p, axis=tuple(range(1, delta.ndim))) ** (1 / p)
    scale = batching.expand(threat.eps, delta) / jnp.where(norm > 0, norm, 1)
    return delta * (scale if p == 2 else jnp.maximum(scale, 1))


def _norm(threat: Threat) -> int | None:
    """Return p where perturbations are bumps of a p-norm; None means l_inf."""
    order = threat.order
    norms: dict[Any, int | None] = {math.inf: None, 2: 2, 1: 1}
    if order not in norms:
        raise TypeError(
            "Square has windows for the norms l_inf, l_2 and l_1, threat.order = inf, 2 or "
            f"1, not for threat={threat!r} of order={order!r}: use another attack, e.g. "
            "SPSA."
        )
    return norms[order]


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _check(attack: Square) -> None:
    check_count(attack, "num_queries")
    p_init = attack.p_init
    if isinstance(p_init, int | float) and not 0 < p_init <= 1:
        raise ValueError(
            f"Square(p_init={p_init}): a fraction of the pixels in (0, 1] is needed; "
            "the paper uses 0.8."
        )
