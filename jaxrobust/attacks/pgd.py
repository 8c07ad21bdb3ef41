"""Projected gradient descent, the attack that training and evaluation are built on.

The attack is a state machine over examples: `init`, `step`, `outcome`. Every leaf of
its state has the batch axis first, the step counter included, so that a caller may replace
a finished example by a waiting one.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxrobust import losses
from jaxrobust._core import batching, checks, predictions, pytree
from jaxrobust.attacks._base import FROM_X, Stepped, check_count
from jaxrobust.attacks.cost import Cost
from jaxrobust.surrogates.expectation import Expectation
from jaxrobust.types import Array, LogitsFn, Loss, Outcome, Threat


class State(NamedTuple):
    """What the next step needs; all leaves are `[B, ...]`."""

    x: Array  # clean inputs
    y: Any  # what the loss takes
    x_adv: Array  # the current iterate
    rule: Any  # state of the ascent rule, optax's, one for each example
    step: Array  # [B] int32, steps taken
    best: Array  # the best iterate so far
    best_loss: Array  # [B]
    best_broken: Array  # [B] bool


@pytree.register
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class PGD(Stepped):
    """Projected gradient ascent from a random start: x <- project(x + steepest(grad)).

    Madry et al. 2018, arXiv:1706.06083. With `momentum`: MI-FGSM, Dong et al. 2018,
    arXiv:1710.06081. Numbers are traced (a new one compiles nothing), the rest is static.

    Args:
      num_steps: Number of gradient steps.
      step_size: Length of a step in the threat's norm, in the units of the data.
      rel_step_size: The same in units of eps; at most one of the two. The default for
        l_inf is 2.5 / num_steps (MadryLab/robustness): far enough to cross the ball. Any
        other ball is curved or cut by bounds, and steps of one length circle around its
        best point: there the default starts at 20 / num_steps and falls geometrically to
        a hundredth of that (with a `step_schedule`: 2.5 / num_steps times that).
      loss: Per-example loss to maximise; `jr.losses.targeted(loss)` takes `y` as target.
      random_start: Start uniformly in the ball instead of at `x`; needs a key.
      keep_best: Return the best iterate: broken rather than not, then of the larger
        loss. Costs one forward pass. False returns the last iterate, as a model that
        draws at random needs: its best iterate is its luckiest draw.
      momentum: Decay mu of g <- mu g + grad / ||grad||_1; None for none.
      optimizer: Any optax transformation as the ascent rule instead of the steepest step,
        e.g. `optax.adam(0.01)`; it sets its own step size and acts on each example.
      step_schedule: Factor on the step size by step number, e.g.
        `optax.schedules.cosine_decay_schedule(1.0, num_steps)`.

    Raises:
      ValueError: On settings that contradict each other.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> weights = jnp.array([[1.0, -1.0], [0.0, 3.0]])
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> attack = PGD(num_steps=10)
      >>> x_adv = attack(lambda x: x @ weights, x, y, threat=jr.Linf(0.25),
      ...                key=jax.random.key(0))
      >>> print(x_adv)
      [[0.25 0.75]]
    """

    papers = ("madry2018",)

    num_steps: int = pytree.static(20)
    step_size: ArrayLike | None = None
    rel_step_size: ArrayLike | None = None
    loss: Loss = pytree.static(losses.cross_entropy)
    random_start: bool = pytree.static(True)
    keep_best: bool = pytree.static(True)
    momentum: ArrayLike | None = None
    optimizer: optax.GradientTransformation | None = pytree.static(None)
    step_schedule: optax.Schedule | None = pytree.static(None)

    def __post_init__(self):
        checks.check_loss(self.loss)
        _check(self)

    instead_of_a_key = FROM_X

    @property
    def needs_key(self) -> bool:
        return self.random_start

    @property
    def machine(self) -> "PGD | None":
        """The attack itself, if its best point counts: it may end there."""
        return self if self.keep_best else None

    @property
    def is_evaluated(self) -> bool:
        """Whether the point that is returned has been: the best has, the last has not."""
        return self.keep_best

    @property
    def num_calls(self) -> int:
        """The steps, and one more that evaluates where the last of them leads."""
        return self.num_steps + self.keep_best

    def cost(self, num_classes: int) -> Cost:
        return Cost(gradients=1, forwards=0)

    def total_cost(self, num_classes: int = 10) -> Cost:
        # `run` needs no gradient at the last point.
        return Cost(gradients=self.num_steps, forwards=int(self.keep_best))

    def init(
        self, x: Array, y: Any, *, threat: Threat, keys: Any, start: Array | None = None
    ) -> State:
        x_adv = x
        if start is not None:
            x_adv = threat.project(start, x)
        elif self.random_start:
            x_adv = threat.sample(keys, x)
        zero = batching.zeros(x)
        return State(
            x=x,
            y=y,
            x_adv=x_adv,
            rule=jax.vmap(self._rule.init)(x),
            step=zero.astype(jnp.int32),
            best=x_adv,
            best_loss=zero - jnp.inf,
            best_broken=zero > 0,
        )

    def step(self, logits_fn: LogitsFn, state: State, *, threat: Threat) -> State:
        """Take one step of every example; one gradient evaluation."""
        found = gradient(self.loss, logits_fn, state.x_adv, state.y)
        if self.keep_best:
            state = keep_best(state, found.loss, found.is_broken)
        grad = found.direction
        if self.optimizer is not None:  # to the others, only the direction matters
            grad = grad * batching.expand(found.scale, grad).astype(grad.dtype)
        return self.move(state, grad, threat=threat)

    def move(self, state: Any, grad: Array, *, threat: Threat) -> Any:
        """Move every iterate along `grad`, whatever that was computed from."""
        x_adv, rule = state.x_adv, state.rule
        if self.optimizer is None:
            direction, rule = self._apply_rule(grad, rule, x_adv)
            delta = threat.steepest(
                direction, x_adv, self._step_size(threat, state.step)
            )
        else:  # optax descends
            delta, rule = self._apply_rule(-grad, rule, x_adv)
        return state._replace(
            x_adv=threat.project((x_adv + delta).astype(x_adv.dtype), state.x),
            rule=rule,
            step=state.step + 1,
        )

    def outcome(self, state: Any, *, threat: Threat) -> Outcome:
        """Return the best iterate, or with `keep_best=False` the last one."""
        found = best_of(state, state.step >= self.num_calls, threat)
        return found if self.keep_best else found._replace(x_adv=state.x_adv)

    def iterate(self, state: Any, *, threat: Threat) -> Array:
        return state.x_adv

    def run(self, logits_fn: LogitsFn, x: Array, y: Any, threat: Threat, keys) -> Array:
        state = self.init(x, y, threat=threat, keys=keys)
        state = self.scan(logits_fn, state, threat, self.num_steps)
        if self.keep_best:
            found = value_of(self.loss, logits_fn, state.x_adv, state.y)
            state = keep_best(state, *found)
        return self.outcome(state, threat=threat).x_adv

    @property
    def _rule(self) -> optax.GradientTransformation:
        if self.optimizer is not None:
            return self.optimizer
        if self.momentum is None:
            return optax.identity()
        return optax.chain(_normalize_l1(), optax.trace(decay=self.momentum))

    def _apply_rule(self, grad: Array, rule: Any, x_adv: Array) -> tuple[Array, Any]:
        """Apply the ascent rule to each example by itself."""
        update: Any = self._rule.update
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            return jax.vmap(update)(grad, rule, x_adv)

    def _step_size(self, threat: Threat, step: Array) -> Any:
        size, relative = self.step_size, self.rel_step_size
        schedule = self.step_schedule
        if size is None:
            if relative is None:
                relative = 2.5 / self.num_steps
                if schedule is None and threat.order != jnp.inf:
                    relative, schedule = 8 * relative, self._decay
            size = relative * jnp.asarray(threat.eps)
        if schedule is None:
            return size
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            return size * schedule(step)

    def _decay(self, step: Array) -> Array:
        return 0.01 ** (step / self.num_steps)


class Ascent(NamedTuple):
    """What one gradient evaluation says; the first two are apart: neither underflows.

    The gradient of the loss is `scale * direction`.
    """

    direction: Array  # [B, ...], of the largest slope in [1, 2) at the logits
    scale: Array  # [B], a power of two
    loss: Array  # [B]
    is_broken: Array  # [B] bool


def gradient(loss: Loss, logits_fn: LogitsFn, x_adv: Array, y: Any) -> Ascent:
    """Return the gradient of the loss at the iterates; one gradient evaluation.

    The slope of a confident example, as small as 1e-38, is scaled to 1 before it goes
    through the model, which may compute in half precision or multiply by small weights.
    """
    outputs_fn, values_of, averaged = logits_fn, loss, _same
    if isinstance(logits_fn, Expectation) and isinstance(loss, losses.Expected):
        outputs_fn, values_of = logits_fn.draws, loss.of_draws  # [B, S, C]
        averaged = logits_fn.averaged
    logits, pull_back = jax.vjp(outputs_fn, x_adv)

    def total(logits: Array):
        values, logits = values_of(logits, y), averaged(logits)
        return jnp.sum(values), (values, losses.is_broken(loss, logits, y))

    wide = predictions.wide(logits)
    slope, (values, is_broken) = jax.grad(total, has_aux=True)(wide)
    slope = jnp.where(jnp.isfinite(slope), slope, 0)
    largest = jnp.max(jnp.abs(batching.flatten(slope)), -1)
    # A power of two: dividing by it rounds nothing.
    exponent = jnp.frexp(jnp.where(largest > 0, largest, 1))[1] - 1
    scale = jnp.ldexp(jnp.ones_like(largest), exponent)
    slope = slope / batching.expand(scale, slope)
    (direction,) = pull_back(slope.astype(logits.dtype))
    # A NaN would spread to the iterate and hide the example from every later step.
    direction = jnp.where(jnp.isfinite(direction), direction, 0)
    return Ascent(direction, scale, values, is_broken)


def value_of(loss: Loss, logits_fn: LogitsFn, x_adv: Array, y: Any):
    """Return loss and goal at the iterates; one forward evaluation."""
    logits = predictions.wide(logits_fn(x_adv))
    return loss(logits, y), losses.is_broken(loss, logits, y)


def _same(logits: Array) -> Array:
    return logits


def is_better(is_broken: Array, loss: Array, best_broken: Array, best_loss: Array):
    """Whether a candidate beats the best: broken first, then the larger loss.

    A broken one whose logits are not numbers has no loss: it counts, as the least of them.
    """
    is_larger = (is_broken == best_broken) & (loss > best_loss)
    return (is_broken & ~best_broken) | is_larger


def keep_best(state: Any, loss: Array, is_broken: Array) -> Any:
    """Keep, for each example, the better of `state.best` and `state.x_adv`."""
    loss = loss.astype(state.best_loss.dtype)
    better = is_better(is_broken, loss, state.best_broken, state.best_loss)
    loss = jnp.where(jnp.isnan(loss), -jnp.inf, loss)
    return state._replace(
        best=batching.where(better, state.x_adv, state.best),
        best_loss=jnp.where(better, loss, state.best_loss),
        best_broken=jnp.where(better, is_broken, state.best_broken),
    )


def best_of(state: Any, is_over: Array, threat: Threat) -> Outcome:
    """Return the outcome of a state that keeps the best of its iterates."""
    distance = threat.distance(state.best, state.x)
    return Outcome(
        x_adv=state.best,
        is_broken=state.best_broken,
        score=state.best_loss,
        is_over=is_over,
        distance=jnp.where(state.best_broken, distance, jnp.inf),
    )


def _normalize_l1() -> optax.GradientTransformation:
    """Grad / ||grad||_1 (Dong et al. 2018, eq. 6); a zero gradient stays zero."""

    def scale(grad: Array) -> Array:
        norm = jnp.sum(jnp.abs(grad))
        return grad / jnp.where(norm > 0, norm, 1)

    return optax.stateless(lambda grad, _: jax.tree.map(scale, grad))


def _check(attack: PGD) -> None:
    """Reject settings that contradict each other or make a silently weak attack."""
    if attack.step_size is not None and attack.rel_step_size is not None:
        raise ValueError(
            f"PGD(step_size={attack.step_size}, rel_step_size={attack.rel_step_size}): "
            "give one of them: step_size in the units of the data, or rel_step_size in "
            "units of eps."
        )
    check_count(attack, "num_steps")
    step_settings = (attack.step_size, attack.rel_step_size, attack.momentum)
    if attack.optimizer is not None and any(v is not None for v in step_settings):
        raise ValueError(
            "PGD(optimizer=...) sets its own steps: drop step_size, rel_step_size and "
            "momentum, e.g. PGD(optimizer=optax.adam(0.01))."
        )
    if attack.optimizer is not None and attack.step_schedule is not None:
        raise ValueError(
            "PGD(optimizer=...): give the schedule to the optimizer itself."
        )
    for name in ("step_size", "rel_step_size"):
        value = getattr(attack, name)
        if isinstance(value, int | float) and not 0 < value < float("inf"):
            raise ValueError(f"PGD({name}={value}): a finite step above 0 is needed.")
