"""Losses of classifiers, for labels: (logits `[B, C]`, y) -> `[B]`."""

import jax
import jax.numpy as jnp

from jaxrobust._core import batching, predictions
from jaxrobust._core.kinds import LABELS, LOGITS, PAIR
from jaxrobust.losses.kinds import declares


@declares(LABELS)
def cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Return the cross-entropy -log softmax(logits)_y of each example.

    Goodfellow et al. 2015, arXiv:1412.6572, use it for FGSM. Computed as
    log(1 + sum_{j != y} exp(z_j - z_y)): of logsumexp(z) - z_y, float32 rounds both value
    and gradient to 0 from a margin of 17 on; these stay exact up to 87.

    Args:
      logits: `[B, C]`.
      y: Labels `[B]`, integers in [0, C).

    Returns:
      `[B]`, at least 0.

    Example:
      >>> import jax.numpy as jnp
      >>> print(cross_entropy(jnp.array([[0.0, 0.0], [60.0, 0.0]]), jnp.array([0, 0])))
      [6.931472e-01 8.756511e-27]
    """
    logits = predictions.wide(logits)
    gaps = logits - batching.take(logits, y)[..., None]
    gaps = jnp.where(predictions.is_label(logits, y), -jnp.inf, gaps)
    most = jax.lax.stop_gradient(jnp.maximum(jnp.max(gaps, -1), 0))
    most = jnp.where(jnp.isfinite(most), most, 0)
    others = jnp.sum(jnp.exp(gaps - most[..., None]), -1)
    # log(exp(-most) + others), exact where `most` is 0 and `others` tiny.
    return most + jnp.log1p(jnp.expm1(-most) + others)


@declares(LABELS)
def negative_log_prob(log_probs: jax.Array, y: jax.Array) -> jax.Array:
    """Return -log_probs_y: the cross-entropy of what is a log-probability already.

    Athalye et al. 2018, arXiv:1707.07397: with `jr.eot(average="log_probs")`, whose logits
    are means of log-probabilities, it is the expected cross-entropy, which `cross_entropy`
    would normalise once more. Not for logits: it says nothing about the other classes.

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
    return -batching.take(predictions.wide(log_probs), y)


@declares(LABELS)
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
    logits = predictions.wide(logits)
    return predictions.largest_other(logits, y) - batching.take(logits, y)


@declares(PAIR)
def margin_of_pair(logits: jax.Array, y: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return the margin of the label, whatever the target: any wrong class counts.

    Args:
      logits: `[B, C]`.
      y: Pair `(labels [B], targets [B])` of integers in [0, C).

    Returns:
      `[B]`, in units of logits.

    Example:
      >>> import jax.numpy as jnp
      >>> pair = jnp.array([1]), jnp.array([2])
      >>> print(margin_of_pair(jnp.array([[1.0, 3.0, 2.0]]), pair))
      [-1.]
    """
    return margin(logits, y[0])


@declares(LABELS)
def dlr(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Return the difference of logits ratio -(z_y - max_{i != y} z_i) / (z_1 - z_3).

    Croce & Hein 2020, arXiv:2003.01690, eq. (6); z_1 >= z_2 >= z_3 are the sorted logits.
    Invariant to shift and scale of the logits. With two classes the ratio does not exist,
    nor where the model excludes all but two (by logits of -inf, or below -1e30): the margin
    is returned.

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
    logits = predictions.wide(logits)
    if logits.shape[-1] < 3:
        return margin(logits, y)
    top, _ = jax.lax.top_k(logits, 3)
    return margin(logits, y) / _spread(top, top[..., 2])


@declares(PAIR)
def dlr_targeted(logits: jax.Array, y: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return the targeted DLR -(z_y - z_t) / (z_1 - (z_3 + z_4) / 2).

    Croce & Hein 2020, arXiv:2003.01690, eq. (7). With fewer than four classes the ratio
    does not exist, nor where the model excludes all but three: z_t - z_y is returned.

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
    logits = predictions.wide(logits)
    difference = batching.take(logits, targets) - batching.take(logits, labels)
    if logits.shape[-1] < 4:
        return difference
    top, _ = jax.lax.top_k(logits, 4)
    return difference / _spread(top, (top[..., 2] + top[..., 3]) / 2)


def _spread(top: jax.Array, low: jax.Array) -> jax.Array:
    """Return z_1 - low, or 1 where the last of the top classes is excluded."""
    exists = predictions.is_live(top[..., -1])
    # 1e-12 is the reference implementation's guard against equal logits.
    return jnp.where(exists, top[..., 0] - jnp.where(exists, low, 0) + 1e-12, 1)


@declares(LOGITS)
def kl(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Return KL(softmax(y) || softmax(logits)); `y` are the clean logits.

    Zhang et al. 2019 (TRADES), arXiv:1901.08573, eq. (5). Computed from log-probabilities
    on both sides, so no gradient is NaN where a probability underflows; a class that the
    clean logits exclude counts nothing.

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
    log_q, log_p = (jax.nn.log_softmax(predictions.wide(z)) for z in (logits, y))
    p = jnp.exp(log_p)
    gap = jnp.where(p > 0, log_p, 0) - jnp.where(p > 0, log_q, 0)
    return jnp.sum(p * gap, -1)
