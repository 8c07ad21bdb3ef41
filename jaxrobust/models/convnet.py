"""The small convolutional networks of the robustness literature on MNIST."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from jaxrobust.models.layers import (
    Activation,
    Normalization,
    activate,
    check_activation,
    conv,
    dense,
    normalize,
)


class TutorialConvNet(nnx.Module):
    """The network of Kolter & Madry's tutorial: four convolutions, 3x3.

    Adversarial Robustness - Theory and Practice (NeurIPS 2018 tutorial), chapter 3.

    Args:
        input_shape: shape of one image, (H, W, C).
        num_classes: number of logits.
        normalization: channel statistics, or `None` for raw pixels.
        rngs: source of the initial weights.

    Example:
        >>> import jax.numpy as jnp
        >>> model = TutorialConvNet((28, 28, 1), 10, rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 28, 28, 1))).shape
        (2, 10)
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        normalization: Normalization | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        height, width, channels = input_shape
        self.normalization = normalization
        self.conv1 = conv(channels, 32, 3, padding=1, rngs=rngs)
        self.conv2 = conv(32, 32, 3, strides=2, padding=1, rngs=rngs)
        self.conv3 = conv(32, 64, 3, padding=1, rngs=rngs)
        self.conv4 = conv(64, 64, 3, strides=2, padding=1, rngs=rngs)
        # Each stride of 2 rounds up.
        flat = -(-height // 4) * -(-width // 4) * 64
        self.dense = dense(flat, 100, rngs=rngs)
        self.output = dense(100, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits [B, num_classes] of the images [B, H, W, C]."""
        x = normalize(self.normalization, x)
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = jax.nn.relu(layer(x))
        return self.output(jax.nn.relu(self.dense(x.reshape(len(x), -1))))


class MadryConvNet(nnx.Module):
    """The MNIST network of Madry et al.: two 5x5 convolutions with max-pooling.

    "Towards Deep Learning Models Resistant to Adversarial Attacks" (ICLR 2018); sizes
    and initial weights as in MadryLab/mnist_challenge, model.py.

    Args:
        input_shape: shape of one image, (H, W, C).
        num_classes: number of logits.
        normalization: channel statistics, or `None` for raw pixels.
        rngs: source of the initial weights.

    Example:
        >>> import jax.numpy as jnp
        >>> model = MadryConvNet((28, 28, 1), 10, rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 28, 28, 1))).shape
        (2, 10)
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        normalization: Normalization | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        height, width, channels = input_shape
        self.normalization = normalization
        options: dict[str, Any] = {
            "kernel_init": _MADRY_KERNEL,
            "bias_init": _MADRY_BIAS,
            "rngs": rngs,
        }
        self.conv1 = conv(channels, 32, 5, padding=2, **options)
        self.conv2 = conv(32, 64, 5, padding=2, **options)
        # Each pooling rounds up.
        flat = -(-height // 4) * -(-width // 4) * 64
        self.dense = dense(flat, 1024, **options)
        self.output = dense(1024, num_classes, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits [B, num_classes] of the images [B, H, W, C]."""
        x = normalize(self.normalization, x)
        for layer in (self.conv1, self.conv2):
            x = jax.nn.relu(layer(x))
            x = nnx.max_pool(x, (2, 2), (2, 2), padding="SAME")
        return self.output(jax.nn.relu(self.dense(x.reshape(len(x), -1))))


# model.py: tf.truncated_normal(stddev=0.1), cut at two deviations; constant 0.1.
_MADRY_KERNEL = nnx.initializers.truncated_normal(0.1)
_MADRY_BIAS = nnx.initializers.constant(0.1)


class SmallConvNet(nnx.Module):
    """The MNIST network of Wong et al.: two 4x4 convolutions with stride 2.

    "Fast is better than free" (ICLR 2020), locuslab/fast_adversarial, MNIST; published
    weights by `from_torch`.

    Args:
        input_shape: shape of one image, (H, W, C), at least 4 pixels high and wide.
        num_classes: number of logits.
        width: channels of the first convolution; the second has twice as many.
        num_hidden: units of the hidden dense layer.
        activation: "relu", or "silu", which is smooth.
        normalization: channel statistics, or `None` for raw pixels.
        rngs: source of the initial weights.

    Raises:
        ValueError: if the image is smaller than 4 x 4 pixels, or there is no such
            activation.

    Example:
        >>> import jax.numpy as jnp
        >>> model = SmallConvNet((28, 28, 1), 10, rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 28, 28, 1))).shape
        (2, 10)
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        width: int = 16,
        num_hidden: int = 100,
        activation: Activation = "relu",
        normalization: Normalization | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        height, columns, channels = input_shape
        if min(height, columns) < 4:
            raise ValueError(
                f"input_shape {tuple(input_shape)} is too small: two convolutions with "
                "stride 2 need images of at least 4 x 4 pixels"
            )
        self.activation = check_activation(activation)
        self.normalization = normalization
        options = {"strides": 2, "padding": 1, "rngs": rngs}
        self.conv1 = conv(channels, width, 4, **options)
        self.conv2 = conv(width, 2 * width, 4, **options)
        # Each stride of 2 rounds down.
        flat = (height // 4) * (columns // 4) * 2 * width
        self.dense = dense(flat, num_hidden, rngs=rngs)
        self.output = dense(num_hidden, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits [B, num_classes] of the images [B, H, W, C]."""
        x = normalize(self.normalization, x)
        for layer in (self.conv1, self.conv2):
            x = activate(self.activation, layer(x))
        x = activate(self.activation, self.dense(x.reshape(len(x), -1)))
        return self.output(x)


class TradesConvNet(nnx.Module):
    """The MNIST network of TRADES: four 3x3 convolutions without padding, two poolings.

    Zhang et al. 2019, arXiv:1901.08573; yaodongyu/TRADES, models/small_cnn.py, without its
    dropout. Published weights by `from_torch`.

    Args:
        input_shape: shape of one image, (H, W, C), at least 16 pixels high and wide.
        num_classes: number of logits.
        normalization: channel statistics, or `None` for raw pixels.
        rngs: source of the initial weights.

    Raises:
        ValueError: if the image is smaller than 16 x 16 pixels.

    Example:
        >>> import jax.numpy as jnp
        >>> model = TradesConvNet((28, 28, 1), 10, rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 28, 28, 1))).shape
        (2, 10)
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        normalization: Normalization | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        height, width, channels = input_shape
        if min(height, width) < 16:
            raise ValueError(
                f"input_shape {tuple(input_shape)} is too small: four convolutions without "
                "padding and two poolings need images of at least 16 x 16 pixels"
            )
        self.normalization = normalization
        self.conv1 = conv(channels, 32, 3, rngs=rngs)
        self.conv2 = conv(32, 32, 3, rngs=rngs)
        self.conv3 = conv(32, 64, 3, rngs=rngs)
        self.conv4 = conv(64, 64, 3, rngs=rngs)
        flat = self.side_after(height) * self.side_after(width) * 64
        self.dense1 = dense(flat, 200, rngs=rngs)
        self.dense2 = dense(200, 200, rngs=rngs)
        self.output = dense(200, num_classes, rngs=rngs)

    @staticmethod
    def side_after(side: int) -> int:
        """Return how many pixels the convolutions leave of a side."""
        return ((side - 4) // 2 - 4) // 2

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits [B, num_classes] of the images [B, H, W, C]."""
        x = normalize(self.normalization, x)
        for first, second in ((self.conv1, self.conv2), (self.conv3, self.conv4)):
            x = jax.nn.relu(second(jax.nn.relu(first(x))))
            x = nnx.max_pool(x, (2, 2), (2, 2))
        x = jax.nn.relu(self.dense1(x.reshape(len(x), -1)))
        return self.output(jax.nn.relu(self.dense2(x)))
