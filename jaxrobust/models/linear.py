"""A linear classifier, the model whose worst case is known in closed form."""

import math
from collections.abc import Sequence

import jax
from flax import nnx

from jaxrobust.models.layers import dense


class Linear(nnx.Module):
    """Flattens the image and applies one affine map.

    There is no normalisation: weights and biases are those of the raw pixels, which is
    what the exact linear worst case needs.

    Args:
        input_shape: shape of one image, such as (28, 28, 1).
        num_classes: number of logits.
        rngs: source of the initial weights.

    Example:
        >>> import jax.numpy as jnp
        >>> model = Linear((8, 8, 1), 10, rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 8, 8, 1))).shape
        (2, 10)
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, *, rngs: nnx.Rngs
    ) -> None:
        self.output = dense(math.prod(input_shape), num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits [B, num_classes] of the images [B, ...]."""
        return self.output(x.reshape(len(x), -1))
