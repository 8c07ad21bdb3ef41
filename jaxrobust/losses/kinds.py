"""What a loss takes as `y`, and when an attack that maximises it has reached its goal."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxrobust._core import predictions
from jaxrobust._core.kinds import ANYTHING, LABELS, MULTI_HOT, PAIR, TARGETS
from jaxrobust.types import Loss

_F = TypeVar("_F", bound=Callable)


def declares(kind: str) -> Callable[[_F], _F]:
    """Say what the `y` of a loss is."""

    def declare(loss: _F) -> _F:
        vars(loss)["takes"] = kind
        return loss

    return declare


def takes(loss: Loss) -> str:
    """Return what a loss says that its `y` is; a plain function takes "anything".

    Args:
      loss: The loss. One of your own says it by an attribute, `my_loss.takes = "targets"`.

    Returns:
      One of the constants of this module, such as `LABELS`.

    Example:
      >>> import jaxrobust as jr
      >>> print(takes(jr.losses.margin), takes(jr.losses.kl))
      labels clean logits
    """
    return getattr(loss, "takes", ANYTHING)


def is_broken(loss: Loss, logits: jax.Array, y: Any) -> jax.Array:
    """Return whether the attack that maximises `loss` has reached its goal, `[B]`.

    The goal is a wrong class; the target class for losses that take targets; any wrong
    label for multi-hot ones. Where `y` holds no labels (`kl`, `squared_error`) there is
    nothing to reach. Logits that are not numbers are not the label either: broken.

    Args:
      loss: The loss.
      logits: `[B, C]`.
      y: What the loss takes as `y`.

    Returns:
      `[B]` booleans.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.losses import margin
      >>> print(is_broken(margin, jnp.array([[1.0, 3.0]]), jnp.array([1])))
      [False]
    """
    kind = takes(loss)
    if kind == TARGETS:
        return predictions.predict(logits) == y
    if kind == MULTI_HOT:
        is_wrong = jnp.any((logits > 0) != (y > 0), -1)
        return is_wrong | ~predictions.is_number(logits)
    labels = y[0] if isinstance(y, tuple) else y
    is_labels = labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer)
    if kind not in (LABELS, PAIR, ANYTHING) or not is_labels:
        return ~predictions.is_number(logits)
    return predictions.predict(logits) != labels
