"""A fully connected network."""

import itertools
import math
from collections.abc import Sequence

import jax
from flax import nnx

from jaxrobust.models.layers import Normalization, dense, normalize


class MLP(nnx.Module):
    """Fully connected layers with ReLU between them.

    Args:
        input_shape: shape of one image, such as (28, 28, 1).
        num_classes: number of logits.
        hidden_sizes: width of each hidden layer.
        normalization: channel statistics, or `None` for raw pixels.
        rngs: source of the initial weights.

    Example:
        >>> import jax.numpy as jnp
        >>> model = MLP((8, 8, 1), 10, hidden_sizes=(32,), rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 8, 8, 1))).shape
        (2, 10)
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        hidden_sizes: Sequence[int] = (200, 100),
        normalization: Normalization | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.normalization = normalization
        sizes = (math.prod(input_shape), *hidden_sizes, num_classes)
        self.layers = nnx.List(
            [
                dense(size, next_size, rngs=rngs)
                for size, next_size in itertools.pairwise(sizes)
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits [B, num_classes] of the images [B, ...]."""
        x = normalize(self.normalization, x).reshape(len(x), -1)
        *hidden, output = self.layers
        for layer in hidden:
            x = jax.nn.relu(layer(x))
        return output(x)
