"""Margin ascent from starts that are diverse in the outputs of the model."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import losses
from jaxrobust._core import batching, pytree
from jaxrobust.attacks._base import Stepped, check_count
from jaxrobust.attacks.cost import Cost
from jaxrobust.attacks.pgd import best_of, gradient, keep_best
from jaxrobust.losses.kinds import declares
from jaxrobust.types import Array, Guided, LogitsFn, Loss, Outcome, Threat

# What the cosine falls to, as a share of the first step.
_LAST_STEP = 0.01


class State(NamedTuple):
    """What the next step needs; all leaves are `[B, ...]`."""

    x: Array  # clean inputs
    y: Guided  # labels, and the classes to start towards
    x_adv: Array  # the current iterate
    step: Array  # [B] int32, evaluations made
    best: Array  # the best iterate so far
    best_loss: Array  # [B]
    best_broken: Array  # [B] bool


@pytree.register
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class ODI(Stepped):
    """A few steps towards a class from a random point, then ascent on the margin.

    Tashiro et al. 2020, arXiv:2003.06878; towards a class, and with steps that shrink as a
    cosine, Liu et al. 2022, arXiv:2203.05154. The class is where the search starts and not
    its goal: any wrong one counts. Use it inside `Targets`.

    Args:
      num_odi_steps: Steps of length eps that maximise the guide's logit less the label's.
      num_steps: Steps that maximise the margin; from eps to a hundredth of it.

    Raises:
      ValueError: If one of them is below 1.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> attack = jr.Targets(ODI(num_steps=10))
      >>> x, y = jnp.array([[0.75, 0.5, 0.25]]), jnp.array([0])
      >>> x_adv = attack(lambda x: 9 * x, x, y, threat=jr.Linf(0.25), key=jax.random.key(0))
      >>> print(jr.losses.margin(x_adv, y))
      [0.25]
    """

    papers = ("tashiro2020", "liu2022")

    num_odi_steps: int = pytree.static(3)
    num_steps: int = pytree.static(29)

    def __post_init__(self):
        check_count(self, "num_odi_steps")
        check_count(self, "num_steps")

    needs_key = True

    @property
    def loss(self) -> Loss:
        return losses.margin_of_pair

    @property
    def num_calls(self) -> int:
        """The steps, and one more that evaluates where the last of them leads."""
        return self.num_odi_steps + self.num_steps + 1

    def cost(self, num_classes: int) -> Cost:
        return Cost(gradients=1, forwards=0)

    def init(
        self, x: Array, y: Any, *, threat: Threat, keys: Any, start: Array | None = None
    ) -> State:
        x_adv = threat.sample(keys, x) if start is None else threat.project(start, x)
        zero = batching.zeros(x)
        return State(
            x=x,
            y=Guided(*y),
            x_adv=x_adv,
            step=zero.astype(jnp.int32),
            best=x_adv,
            best_loss=zero - jnp.inf,
            best_broken=zero > 0,
        )

    def step(self, logits_fn: LogitsFn, state: State, *, threat: Threat) -> State:
        """Take one step of every example; one gradient evaluation."""
        is_start = state.step < self.num_odi_steps
        found = gradient(_climbed, logits_fn, state.x_adv, (*state.y, is_start))
        state = keep_best(state, found.loss, found.is_broken)
        # From 0 at the first step on the margin to 1 after the last.
        done = jnp.maximum(state.step - self.num_odi_steps, 0) / self.num_steps
        share = _LAST_STEP + (1 - _LAST_STEP) * (1 + jnp.cos(jnp.pi * done)) / 2
        size = jnp.asarray(threat.eps) * share.astype(state.best_loss.dtype)
        delta = threat.steepest(found.direction, state.x_adv, size)
        moved = threat.project((state.x_adv + delta).astype(state.x.dtype), state.x)
        return state._replace(x_adv=moved, step=state.step + 1)

    def outcome(self, state: State, *, threat: Threat) -> Outcome:
        """Return the best iterate by its margin."""
        return best_of(state, state.step >= self.num_calls, threat)

    def iterate(self, state: State, *, threat: Threat) -> Array:
        return state.x_adv


@declares(losses.PAIR)
def _climbed(logits: Array, y: tuple[Array, Array, Array]) -> Array:
    """Return the margin; its slope is that towards the guide in the first steps."""
    labels, guide, is_start = y
    margin = losses.margin(logits, labels)
    towards = batching.take(logits, guide) - batching.take(logits, labels)
    # Zero by its value, unless the model has left the class out.
    slope = jnp.where(
        jnp.isfinite(towards), towards - jax.lax.stop_gradient(towards), 0
    )
    return jnp.where(is_start, jax.lax.stop_gradient(margin) + slope, margin)
