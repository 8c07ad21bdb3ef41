"""Per-example helpers: the only place that knows that axis 0 is the batch."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrobust._core import cpu


def expand(value: ArrayLike, x: jax.Array) -> jax.Array:
    """Shape a scalar or a `[B]` array so that it broadcasts against `x [B, ...]`."""
    value = jnp.asarray(value, dtype=jnp.promote_types(x.dtype, jnp.float32))
    if value.ndim == 0:
        return value
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))


def flatten(x: jax.Array) -> jax.Array:
    """Reshape `[B, ...]` to `[B, d]`, for sums and maxima over an example.

    XLA:CPU (JAX 0.10.2) would reduce over three axes at a time, which for images takes
    several times as long, if it saw them.
    """
    flat = x.reshape(x.shape[0], math.prod(x.shape[1:]))  # a batch may be empty
    return cpu.opaque(flat) if x.ndim > 2 else flat


def zeros(x: jax.Array) -> jax.Array:
    """Return one zero for each example, `[B]`, in float32 at least.

    Carries of loops are derived from the data, so that they are sharded like it.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.sum(jnp.zeros_like(flatten(x), wide), -1)


def where(condition: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Select whole examples: `condition` is `[B]`, `a` and `b` are `[B, ...]`."""
    return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - 1)), a, b)


def labels(y: jax.Array) -> jax.Array:
    """Return labels in int32: uint8 cannot count to 300 classes, nor int8 to 200."""
    return y.astype(jnp.int32)


def take(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Select the logit of class `y` in each row."""
    return jnp.take_along_axis(logits, labels(y)[..., None], axis=-1)[..., 0]


def unit_max(grad: jax.Array) -> jax.Array:
    """Scale each example of `grad` to a largest magnitude of 1; zero stays zero.

    Squares of the tiny gradients of a confident model underflow in float32; after this
    scaling they do not.
    """
    largest = expand(jnp.max(jnp.abs(flatten(grad)), -1), grad)
    return grad / jnp.where(largest > 0, largest, 1)


def is_keys(key: object) -> bool:
    """Whether `key` is a typed PRNG key or an array of them."""
    return isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def per_example_keys(key: jax.Array, num_examples: int) -> jax.Array:
    """Derive one key for each example; `[B]` keys are returned as they are.

    Key i is `fold_in(key, i)`: it does not depend on the number of examples.
    """
    if key.ndim == 1:
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_examples))


def fold_in(keys: jax.Array, data: ArrayLike) -> jax.Array:
    """Fold one integer, or one for each example, into the `[B]` keys."""
    data = jnp.asarray(data)
    return jax.vmap(jax.random.fold_in, (0, 0 if data.ndim else None))(keys, data)


def draw(distribution: Callable, keys: jax.Array, x: jax.Array) -> jax.Array:
    """Draw noise in the shape of `x`, that of each example from its own key.

    From `fold_in(key, 0)`: the caller's keys are not used up.
    """
    return jax.vmap(lambda key: distribution(jax.random.fold_in(key, 0), x.shape[1:]))(
        keys
    )


def as_pytree(function: Callable) -> Callable:
    """Wrap a plain function so that `jax.jit` accepts it as an argument."""
    leaves = jax.tree.leaves(function)
    is_leaf = len(leaves) == 1 and leaves[0] is function
    return jax.tree_util.Partial(function) if is_leaf else function
