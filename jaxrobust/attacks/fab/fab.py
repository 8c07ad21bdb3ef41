"""The fast adaptive boundary attack: the nearest adversarial point, whatever eps.

A minimum-norm attack: its iterates leave the ball, the point that it returns does not.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrobust import losses, threats
from jaxrobust._core import batching, predictions, pytree
from jaxrobust.attacks._base import FROM_X, Stepped, check_count
from jaxrobust.attacks.cost import Cost
from jaxrobust.attacks.fab import boundaries
from jaxrobust.threats import hyperplanes
from jaxrobust.types import Array, LogitsFn, Loss, Outcome, Threat


class State(NamedTuple):
    """What the next step needs; all leaves are `[B, ...]`."""

    x: Array  # clean inputs
    y: Any  # labels, or (labels, targets)
    x_adv: Array  # the current iterate, in the bounds, at any distance
    step: Array  # [B] int32, steps taken
    nearest: Array  # the nearest adversarial point found, at any distance; else x
    nearest_distance: Array  # [B], inf where none was found
    best: Array  # `nearest` where it is within eps, else its projection
    best_broken: Array  # [B] bool, whether `nearest` is within eps


@pytree.register
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class FAB(Stepped):
    """Steps onto the linearised decision boundary, drawn back towards `x`.

    Croce & Hein 2020, arXiv:1907.02044. Each step projects the iterate and `x` on the
    hyperplane where the linearised logits tie, mixes the two (eq. (9)), and, once a wrong
    class is reached, walks back towards `x` (eq. (11)). The final search of the paper
    is left out, as in AutoAttack, arXiv:2003.01690.

    Args:
      num_steps: Number of steps.
      alpha_max: Largest weight of the step that starts at `x`.
      eta: Overshoot beyond the hyperplane; above 1.
      beta: Part of the way from `x` that is kept after an adversarial point was found.
      targeted: Whether `y` is a pair `(labels, targets)` and only the boundary between
        these two classes is approached (FAB-T): one gradient for each step instead
        of one for each wrong class. Any wrong class counts as a success.
      random_start: Start uniformly in the ball of radius eps / 2; needs a key.

    Raises:
      ValueError: If `num_steps` is below 1.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> weights = jnp.array([[1.0, -1.0], [0.0, 2.0]])
      >>> x, y = jnp.array([[0.75, 0.25]]), jnp.array([0])
      >>> attack = FAB(num_steps=10)
      >>> x_adv = attack(lambda x: x @ weights, x, y, threat=jr.Linf(0.3))
      >>> print(x_adv.round(2))  # on the boundary
      [[0.5 0.5]]
    """

    papers = ("croce2020fab",)

    num_steps: int = pytree.static(100)
    alpha_max: ArrayLike = 0.1
    eta: ArrayLike = 1.05
    beta: ArrayLike = 0.9
    targeted: bool = pytree.static(False)
    random_start: bool = pytree.static(False)

    def __post_init__(self):
        check_count(self, "num_steps")

    instead_of_a_key = FROM_X
    is_evaluated = False  # a projected point is not

    @property
    def needs_key(self) -> bool:
        return self.random_start

    @property
    def allows_any_distance(self) -> bool:
        return not self.random_start

    @property
    def loss(self) -> Loss:
        return losses.margin_of_pair if self.targeted else losses.margin

    @property
    def num_calls(self) -> int:
        return self.num_steps

    def cost(self, num_classes: int) -> Cost:
        """Return the evaluations of a step: untargeted, C - 1 gradients for C classes."""
        return Cost(gradients=1 if self.targeted else num_classes - 1, forwards=1)

    def init(
        self, x: Array, y: Any, *, threat: Threat, keys: Any, start: Array | None = None
    ) -> State:
        x_adv = x
        if start is not None:
            x_adv = threats.into_bounds(threat, start, x)
        elif self.random_start:
            # The paper restarts within half of min(eps, best distance so far). Restarts
            # here are independent runs and know of no earlier best: half of eps, as
            # in AutoAttack, which however draws from the sphere and not the ball.
            x_adv = (x + 0.5 * (threat.sample(keys, x) - x)).astype(x.dtype)
        zero = batching.zeros(x)
        return State(
            x=x,
            y=y,
            x_adv=x_adv,
            step=zero.astype(jnp.int32),
            nearest=x,
            nearest_distance=zero + jnp.inf,
            best=x,
            best_broken=zero > 0,
        )

    def step(self, logits_fn: LogitsFn, state: State, *, threat: Threat) -> State:
        """Take one step of every example; gradients, then one forward evaluation."""
        linearize = (
            boundaries.towards_target if self.targeted else boundaries.towards_any
        )
        gap, w, logits = linearize(logits_fn, state.x_adv, state.y, threat)
        # The logits at the iterate come with its gradient: a point that is still
        # adversarial after walking back is kept, which the paper does not do.
        state = self._keep_nearest(state, logits, threat)
        state = state._replace(x_adv=self._approach(state, gap, w, threat))
        logits = predictions.wide(logits_fn(state.x_adv))
        state = self._keep_nearest(state, logits, threat)
        back = state.x + self.beta * (state.x_adv - state.x)  # eq. (11)
        is_adversarial = losses.is_broken(self.loss, logits, state.y)
        x_adv = batching.where(is_adversarial, back.astype(state.x.dtype), state.x_adv)
        is_found = jnp.isfinite(state.nearest_distance)
        is_within = is_found & (state.nearest_distance <= jnp.asarray(threat.eps))
        # What was verified within eps is returned as it is, to the last bit.
        projected = threat.project(state.nearest, state.x)
        return state._replace(
            x_adv=x_adv,
            step=state.step + 1,
            best=batching.where(is_within, state.nearest, projected),
            best_broken=is_within,
        )

    def outcome(self, state: State, *, threat: Threat) -> Outcome:
        """Return the nearest adversarial point, drawn into the ball if it lies outside."""
        return Outcome(
            x_adv=state.best,
            is_broken=state.best_broken,
            score=-state.nearest_distance,
            is_over=state.step >= self.num_calls,
            distance=state.nearest_distance,
        )

    def iterate(self, state: State, *, threat: Threat) -> Array:
        """Return the current iterate, drawn into the ball."""
        return threat.project(state.x_adv, state.x)

    def _keep_nearest(self, state: State, logits: Array, threat: Threat) -> State:
        """Keep the iterate, whose logits these are, if it is adversarial and nearer."""
        distance = threat.distance(state.x_adv, state.x)
        is_adversarial = losses.is_broken(self.loss, logits, state.y)
        is_nearer = is_adversarial & (distance < state.nearest_distance)
        return state._replace(
            nearest=batching.where(is_nearer, state.x_adv, state.nearest),
            nearest_distance=jnp.where(is_nearer, distance, state.nearest_distance),
        )

    def _approach(self, state: State, gap: Array, w: Array, threat: Any) -> Array:
        """Return (1 - alpha) (x_adv + eta d1) + alpha (x + eta d2), in the bounds.

        d1 and d2 lead from `x_adv` and `x` to the hyperplane gap + <w, z - x_adv> = 0.
        """
        nearest, _ = hyperplanes.geometry_of(threat)
        w = batching.flatten(w)

        def step_from(z: Array) -> tuple[Array, Array]:
            ahead = jnp.sum(w * batching.flatten(z - state.x_adv), -1) + gap
            delta = nearest(
                w, -ahead[:, None], *map(batching.flatten, threats.room(threat, z))
            ).reshape(z.shape)
            # 1e-8: the reference implementation's guard against two steps of length 0.
            length = threat.distance(delta, jnp.zeros_like(delta))
            return delta, jnp.maximum(length, 1e-8)

        d1, length1 = step_from(state.x_adv)
        d2, length2 = step_from(state.x)
        alpha = jnp.minimum(length1 / (length1 + length2), self.alpha_max)  # eq. (10)
        alpha = batching.expand(alpha, state.x)
        from_x_adv, from_x = state.x_adv + self.eta * d1, state.x + self.eta * d2
        moved = ((1 - alpha) * from_x_adv + alpha * from_x).astype(state.x.dtype)
        moved = threats.into_bounds(threat, moved, state.x)
        # Without bounds, a vanishing gradient can send a point to infinity.
        is_finite = jnp.all(jnp.isfinite(batching.flatten(moved)), -1)
        return batching.where(is_finite, moved, state.x_adv)
