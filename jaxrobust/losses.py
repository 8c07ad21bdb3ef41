"""Losses that attacks maximise: (logits `[B, C]`, y) -> `[B]`.

`y` is whatever the loss expects; for most, integer labels `[B]`. A large value is good
for the adversary. Training minimises the mean of one of them (`cross_entropy`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrobust import _batch
from jaxrobust._repr import concise
from jaxrobust.types import Loss


def cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Return the cross-entropy -log softmax(logits)_y of each example.

    Goodfellow et al. 2015, arXiv:1412.6572, use it for FGSM.

    Args:
      logits: `[B, C]`.
      y: Labels `[B]`, integers in [0, C).

    Returns:
      `[B]`, at least 0.

    Example:
      >>> import jax.numpy as jnp
      >>> print(cross_entropy(jnp.zeros((1, 2)), jnp.array([0])))
      [0.6931472]
    """
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)


def negative_log_prob(log_probs: jax.Array, y: jax.Array) -> jax.Array:
    """Return -log_probs_y: the cross-entropy of what is a log-probability already.

    Athalye et al. 2018, arXiv:1707.07397: with `jr.eot`, whose logits are means of
    log-probabilities, it is the expected cross-entropy, which `cross_entropy` would
    normalise once more. Not for logits: it says nothing about the other classes.

    Args:
      log_probs: `[B, C]`.
      y: Labels `[B]`, integers in [0, C).

    Returns:
      `[B]`.

    Example:
      >>> import jax.numpy as jnp
      >>> print(negative_log_prob(jnp.log(jnp.array([[0.5, 0.25]])), jnp.array([1])))
      [1.3862944]
    """
    return -_batch.take(log_probs, y)


def margin(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Return max_{i != y} z_i - z_y, positive exactly where the example is broken.

    Carlini & Wagner 2017, arXiv:1608.04644, f_6 with kappa = infinity.

    Args:
      logits: `[B, C]`.
      y: Labels `[B]`, integers in [0, C).

    Returns:
      `[B]`, in units of logits.

    Example:
      >>> import jax.numpy as jnp
      >>> print(margin(jnp.array([[1.0, 3.0, 2.0]]), jnp.array([1])))
      [-1.]
    """
    return _largest_other(logits, y) - _batch.take(logits, y)


def dlr(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Return the difference of logits ratio -(z_y - max_{i != y} z_i) / (z_1 - z_3).

    Croce & Hein 2020, arXiv:2003.01690, eq. (6); z_1 >= z_2 >= z_3 are the sorted logits.
    Invariant to shift and scale of the logits. With two classes the ratio does not exist:
    the margin is returned.

    Args:
      logits: `[B, C]`.
      y: Labels `[B]`, integers in [0, C).

    Returns:
      `[B]`, without unit, positive exactly where the example is broken.

    Example:
      >>> import jax.numpy as jnp
      >>> print(dlr(jnp.array([[1.0, 3.0, 2.0]]), jnp.array([1])))
      [-0.5]
    """
    if logits.shape[-1] < 3:
        return margin(logits, y)
    top, _ = jax.lax.top_k(logits, 3)
    # 1e-12 is the reference implementation's guard against equal logits.
    return margin(logits, y) / (top[..., 0] - top[..., 2] + 1e-12)


def dlr_targeted(logits: jax.Array, y: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return the targeted DLR -(z_y - z_t) / (z_1 - (z_3 + z_4) / 2).

    Croce & Hein 2020, arXiv:2003.01690, eq. (7). With fewer than four classes the ratio
    does not exist: z_t - z_y is returned.

    Args:
      logits: `[B, C]`.
      y: Pair `(labels [B], targets [B])` of integers in [0, C).

    Returns:
      `[B]`, without unit.

    Example:
      >>> import jax.numpy as jnp
      >>> labels, targets = jnp.array([1]), jnp.array([2])
      >>> print(dlr_targeted(jnp.array([[1.0, 3.0, 2.0, 1.0]]), (labels, targets)))
      [-0.5]
    """
    labels, targets = y
    difference = _batch.take(logits, targets) - _batch.take(logits, labels)
    if logits.shape[-1] < 4:
        return difference
    top, _ = jax.lax.top_k(logits, 4)
    return difference / (top[..., 0] - (top[..., 2] + top[..., 3]) / 2 + 1e-12)


def kl(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Return KL(softmax(y) || softmax(logits)); `y` are the clean logits.

    Zhang et al. 2019 (TRADES), arXiv:1901.08573, eq. (5). Computed from log-probabilities
    on both sides, so no gradient is NaN where a probability underflows.

    Args:
      logits: `[B, C]`.
      y: Logits of the clean inputs, `[B, C]`.

    Returns:
      `[B]`, in nats, at least 0 up to rounding.

    Example:
      >>> import jax.numpy as jnp
      >>> print(kl(jnp.zeros((1, 3)), jnp.zeros((1, 3))))
      [0.]
    """
    return optax.losses.kl_divergence_with_log_targets(
        jax.nn.log_softmax(logits), jax.nn.log_softmax(y)
    )


@dataclasses.dataclass(frozen=True, repr=False)
class Targeted:
    """The negative of a loss at a target class; made by `targeted`.

    Args:
      loss: A loss on labels.

    Example:
      >>> import jax.numpy as jnp
      >>> print(Targeted(margin)(jnp.array([[1.0, 3.0]]), jnp.array([1])))
      [2.]
    """

    loss: Loss

    __repr__ = concise

    def __call__(self, logits: jax.Array, y: Any) -> jax.Array:
        return -self.loss(logits, y)


def targeted(loss: Loss) -> Targeted:
    """Turn a loss into one that grows as the model is drawn to the class given as `y`.

    Szegedy et al. 2014, arXiv:1312.6199, section 4.1. Equal losses give equal values, so
    nothing is compiled twice.

    Args:
      loss: A loss on labels, such as `cross_entropy` or `margin`.

    Returns:
      A loss whose `y` is the target class `[B]`.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = targeted(margin)
      >>> print(loss(jnp.array([[1.0, 3.0, 2.0]]), jnp.array([1])))
      [1.]
    """
    return Targeted(loss)


def is_success(loss: Loss, logits: jax.Array, y: Any) -> jax.Array:
    """Return whether the attack that maximises `loss` has reached its goal, `[B]`.

    The goal is a wrong class; the target class for `targeted` losses; for a loss whose `y`
    holds no labels (`kl`) there is no goal, and the answer is False.

    Args:
      loss: The loss.
      logits: `[B, C]`.
      y: What the loss takes as `y`.

    Returns:
      `[B]` booleans.

    Example:
      >>> import jax.numpy as jnp
      >>> print(is_success(margin, jnp.array([[1.0, 3.0]]), jnp.array([1])))
      [False]
    """
    predicted = jnp.argmax(logits, axis=-1)
    if isinstance(loss, Targeted):
        return predicted == y
    labels = y[0] if isinstance(y, tuple) else y
    if labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer):
        return predicted != labels
    return jnp.zeros_like(predicted, dtype=bool)


def _largest_other(logits: jax.Array, y: jax.Array) -> jax.Array:
    is_label = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
    return jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
