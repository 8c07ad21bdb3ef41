"""The exact adversary of a linear classifier, for every threat model.

The lecture's row 10: x' = x - sign(w) eps changes w.x by eps ||w||_1, and no
perturbation in the ball changes it more. Every attack is tested against it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import losses
from jaxrobust._core import batching, checks
from jaxrobust.types import Array, Threat


def linear_worst_case(
    weights: Array, bias: Array, x: Array, y: Array, *, threat: Threat
) -> tuple[Array, Array]:
    """Return the worst-case inputs of a linear classifier and their margin, exactly.

    Goodfellow et al. 2015, arXiv:1412.6572, section 3, for each pair of classes: the margin
    max_{c != y} z_c - z_y is a maximum of linear functions, so its maximum over the
    threat is the largest of the C - 1 linear maxima, each of which `threat.steepest`
    solves exactly (bounds and mask included). With two classes this is the exact maximum of
    the cross-entropy too, since that grows with the margin.

    Args:
      weights: `[d, C]`, acting on flattened inputs.
      bias: `[C]`.
      x: Clean inputs `[B, ...]` of d numbers each.
      y: Labels `[B]`.
      threat: `Linf`, `L2` or `L1`.

    Returns:
      `x_adv [B, ...]` and its margin `[B]`, positive exactly where no defence is left:
      the robust accuracy of the classifier is `(margin < 0).mean()`, up to ties.

    Raises:
      ValueError: If the shapes do not fit, or `x` leaves the bounds of the threat.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> weights = jnp.array([[1.0, -1.0], [0.0, 2.0]])
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> x_adv, margin = linear_worst_case(
      ...     weights, jnp.zeros(2), x, y, threat=jr.Linf(0.25))
      >>> print(x_adv, margin)
      [[0.25 0.75]] [1.]
    """
    weights, bias, x, y = map(jnp.asarray, (weights, bias, x, y))
    flat = batching.flatten(x)
    if weights.ndim != 2 or weights.shape[0] != flat.shape[1]:
        raise ValueError(
            f"weights have shape {weights.shape}, but the flattened inputs have "
            f"{flat.shape[1]} numbers: [d, C] = [{flat.shape[1]}, C] is needed."
        )
    if not any(isinstance(v, jax.core.Tracer) for v in jax.tree.leaves((x, threat))):
        values = np.asarray(x, np.float32)
        if values.size:
            checks.check_bounds("x", values, values, threat, "Bring x into the bounds")

    def logits_fn(x: Array) -> Array:
        return (
            jnp.matmul(batching.flatten(x), weights, precision="highest") + bias[None]
        )

    def against(target: Array) -> tuple[Array, Array]:
        """Return the exact maximiser of z_target - z_y."""
        direction = (weights[:, target][None] - weights[:, y].T).reshape(x.shape)
        delta = threat.steepest(direction, x, threat.eps)
        x_adv = threat.project((x + delta).astype(x.dtype), x)
        return x_adv, losses.margin(logits_fn(x_adv), y)

    candidates, margins = jax.lax.map(against, jnp.arange(weights.shape[1]))
    # For target = y the direction is zero and the candidate is x: never better.
    best = jnp.argmax(margins, axis=0)
    chosen = jax.vmap(lambda k, c: c[k], in_axes=(0, 1))(best, candidates)
    return chosen, jnp.max(margins, axis=0)
