"""SPSA: gradient ascent with gradients estimated from the outputs of the model."""

import dataclasses
from typing import Any, NamedTuple

import jax
import optax
from jax.typing import ArrayLike

from jaxrobust import losses
from jaxrobust._core import batching, pytree
from jaxrobust.attacks._base import Stepped
from jaxrobust.attacks.cost import Cost
from jaxrobust.attacks.pgd import PGD, best_of, keep_best, value_of
from jaxrobust.attacks.spsa.estimate import estimate_gradient
from jaxrobust.types import Array, LogitsFn, Loss, Outcome, Threat


class State(NamedTuple):
    """The state of `PGD` and the keys; all leaves are `[B, ...]`."""

    x: Array  # clean inputs
    y: Any  # what the loss takes
    x_adv: Array  # the current iterate
    rule: Any  # state of the ascent rule, optax's, one for each example
    step: Array  # [B] int32, steps taken
    best: Array  # the best iterate so far
    best_loss: Array  # [B]
    best_broken: Array  # [B] bool
    keys: Array  # [B]


@pytree.register
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class SPSA(Stepped):
    """Projected ascent along estimated gradients, for models without usable ones.

    Uesato et al. 2018, arXiv:1802.05666. The ascent is that of `PGD`: the steepest step for
    the threat, or Adam as in the paper with `optimizer=optax.adam(0.01)`. A step evaluates
    `num_samples` points around the iterate for the gradient, and where it arrives. The
    starting point is not evaluated.

    Memory: chunk_size * B inputs go through the model at once, one chunk after the other;
    by default all num_samples * B of them.

    Args:
      num_steps: Number of steps.
      num_samples: Evaluations for each gradient, an even number: antithetic pairs.
      delta: How far from the iterate they are in each coordinate, in units of the data.
      step_size: Length of a step in the threat's norm, in the units of the data.
      rel_step_size: The same in units of eps; at most one of the two. The default is that
        of `PGD`.
      loss: Per-example loss to maximise; `jr.losses.targeted(loss)` takes `y` as target.
      random_start: Start uniformly in the ball instead of at `x`.
      momentum: Decay of an average of the estimates, see `PGD`; None for none.
      optimizer: Any optax transformation as the ascent rule, see `PGD`.
      step_schedule: Factor on the step size by step number.
      chunk_size: Number of samples evaluated at once, an even divisor of `num_samples`;
        None for all.

    Raises:
      ValueError: On settings that contradict each other.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> weights = jnp.array([[1.0, -1.0], [0.0, 3.0]])
      >>> def quantized(x):  # its gradient is zero
      ...   return jnp.round(100 * x) @ weights
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> attack = SPSA(num_steps=10, num_samples=8, delta=0.05)
      >>> print(attack(quantized, x, y, threat=jr.Linf(0.25), key=jax.random.key(0)))
      [[0.25 0.75]]
    """

    papers = ("uesato2018",)
    access = "scores"

    num_steps: int = pytree.static(100)
    num_samples: int = pytree.static(128)
    delta: ArrayLike = 0.01
    step_size: ArrayLike | None = None
    rel_step_size: ArrayLike | None = None
    loss: Loss = pytree.static(losses.margin)
    random_start: bool = pytree.static(False)
    momentum: ArrayLike | None = None
    optimizer: optax.GradientTransformation | None = pytree.static(None)
    step_schedule: optax.Schedule | None = pytree.static(None)
    chunk_size: int | None = pytree.static(None)

    def __post_init__(self):
        _ = self.ascent  # PGD checks what it knows
        _check(self)

    @property
    def ascent(self) -> PGD:
        """The ascent that the estimates drive."""
        return PGD(
            num_steps=self.num_steps,
            step_size=self.step_size,
            rel_step_size=self.rel_step_size,
            loss=self.loss,
            random_start=self.random_start,
            momentum=self.momentum,
            optimizer=self.optimizer,
            step_schedule=self.step_schedule,
        )

    needs_key = True

    @property
    def num_calls(self) -> int:
        return self.num_steps

    def cost(self, num_classes: int) -> Cost:
        return Cost(gradients=0, forwards=self.num_samples + 1)

    def init(
        self, x: Array, y: Any, *, threat: Threat, keys: Any, start: Array | None = None
    ) -> State:
        own = batching.fold_in(keys, 0)
        first = self.ascent.init(x, y, threat=threat, keys=own, start=start)
        return State(**first._asdict(), keys=keys)

    def step(self, logits_fn: LogitsFn, state: State, *, threat: Threat) -> State:
        """Estimate the gradient of every example, move, evaluate where it arrives."""
        # `init` has used 0.
        keys = jax.vmap(jax.random.fold_in)(state.keys, state.step + 1)
        grad = estimate_gradient(
            self.loss,
            logits_fn,
            state.x_adv,
            state.y,
            threat=threat,
            keys=keys,
            num_samples=self.num_samples,
            delta=self.delta,
            chunk_size=self.chunk_size,
        )
        state = self.ascent.move(state, grad, threat=threat)
        return keep_best(state, *value_of(self.loss, logits_fn, state.x_adv, state.y))

    def outcome(self, state: State, *, threat: Threat) -> Outcome:
        return best_of(state, state.step >= self.num_calls, threat)

    def iterate(self, state: State, *, threat: Threat) -> Array:
        return state.x_adv


def _check(attack: SPSA) -> None:
    count, size = attack.num_samples, attack.chunk_size
    if not isinstance(count, int) or count < 2 or count % 2:
        raise ValueError(
            f"SPSA(num_samples={count!r}): an even number of at least 2 is needed; the "
            "samples are pairs x + delta v, x - delta v."
        )
    is_size = isinstance(size, int) and size >= 2 and size % 2 == 0
    if size is not None and not (is_size and count % size == 0):
        raise ValueError(
            f"SPSA(num_samples={count}, chunk_size={size!r}): an even divisor of "
            "num_samples is needed, such as 2, or None for one chunk."
        )
    if isinstance(attack.delta, int | float) and not 0 < attack.delta < float("inf"):
        raise ValueError(
            f"SPSA(delta={attack.delta}): a finite distance above 0 is needed."
        )
