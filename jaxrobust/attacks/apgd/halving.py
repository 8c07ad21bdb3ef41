"""When Auto-PGD halves its step: the checkpoints of Croce & Hein 2020, section 3.2."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrobust.types import Array


class Schedule(NamedTuple):
    """What the next check needs; all leaves are `[B]`."""

    step_size: Array
    period: Array  # int32, steps from the last check to the next one
    waited: Array  # int32, steps since the last check
    num_increases: Array  # int32, how many of these increased the loss
    last_loss: Array
    loss_at_check: Array  # the largest loss at the last check
    was_halved: Array  # bool, at the last check


def init(step_size: Array, num_steps: int) -> Schedule:
    """Return the schedule before the first evaluation; `step_size [B]`."""
    zero = jnp.zeros_like(step_size)
    count = zero.astype(jnp.int32)
    return Schedule(
        step_size=step_size,
        period=count + _share(0.22, num_steps),
        waited=count,
        num_increases=count,
        last_loss=zero,
        loss_at_check=zero,
        was_halved=zero == 0,  # so that C2 is not asked at the first check
    )


def check(
    old: Schedule,
    step: Array,
    loss: Array,
    top_loss: Array,
    rho: ArrayLike,
    num_steps: int,
) -> tuple[Schedule, Array]:
    """Return the next schedule and which examples halve their step, `[B]`.

    At a checkpoint an example halves its step if (C1) at most a share rho of the steps
    since the last one increased the loss, or (C2) neither its step nor its largest loss
    changed since then. The paper has "<" in C1, the authors' code "<=".

    Args:
      old: The schedule so far.
      step: `[B]`, the number of steps behind the iterate just evaluated.
      loss: `[B]`, its loss.
      top_loss: `[B]`, the largest loss so far, this one included.
      rho: The share of C1.
      num_steps: Number of steps of the whole attack.
    """
    is_step = step > 0  # the start is not a step
    is_increase = is_step & (loss > old.last_loss)
    num_increases = old.num_increases + is_increase.astype(jnp.int32)
    waited = old.waited + is_step.astype(jnp.int32)
    is_check = waited == old.period
    c1 = num_increases.astype(loss.dtype) <= rho * old.period.astype(loss.dtype)
    c2 = ~old.was_halved & (old.loss_at_check >= top_loss)
    is_halved = is_check & (c1 | c2)
    shorter = jnp.maximum(old.period - _share(0.03, num_steps), _share(0.06, num_steps))
    schedule = Schedule(
        step_size=jnp.where(is_halved, old.step_size / 2, old.step_size),
        period=jnp.where(is_check, shorter, old.period),
        waited=jnp.where(is_check, 0, waited),
        num_increases=jnp.where(is_check, 0, num_increases),
        # The authors' code compares the loss after the first step with 0 and not with the
        # loss at the start.
        last_loss=jnp.where(is_step, loss, 0),
        loss_at_check=jnp.where(is_check, top_loss, old.loss_at_check),
        was_halved=jnp.where(is_check, is_halved, old.was_halved),
    )
    return schedule, is_halved


def _share(share: float, num_steps: int) -> int:
    """Return a share of the steps as the authors' code rounds it; at least one."""
    return max(int(share * num_steps), 1)
