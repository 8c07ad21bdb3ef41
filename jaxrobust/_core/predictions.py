"""What a row of logits says: its prediction, if it is one, and which classes are left."""

import jax
import jax.numpy as jnp

from jaxrobust._core import batching

# Models exclude a class by -inf or by a number such as -1e38; no logit means so much.
_EXCLUDED = -1e30


def wide(logits: jax.Array) -> jax.Array:
    """Return the logits in float32 at least: sums and differences of half precision err."""
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def is_number(logits: jax.Array) -> jax.Array:
    """Whether a row is a prediction, `[B]`: no NaN, no +inf, and not -inf throughout."""
    rows = batching.flatten(logits)
    is_bad = jnp.any(jnp.isnan(rows) | jnp.isposinf(rows), -1)
    return ~is_bad & jnp.any(jnp.isfinite(rows), -1)


def predict(logits: jax.Array) -> jax.Array:
    """Return the class of the largest logit `[B]`, -1 where the row is not a number.

    No label is -1: an example whose prediction is not a number counts as broken.
    """
    return jnp.where(is_number(logits), jnp.argmax(logits, -1), -1)


def is_live(logits: jax.Array) -> jax.Array:
    """Whether the model has left the class in, in the shape of `logits`."""
    return logits > _EXCLUDED


def is_label(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Return the one-hot labels as booleans, `[B, C]`."""
    return jax.nn.one_hot(batching.labels(y), logits.shape[-1], dtype=bool)


def largest_other(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Return the largest logit of the classes other than `y`, `[B]`."""
    return jnp.max(jnp.where(is_label(logits, y), -jnp.inf, logits), axis=-1)
