"""Three small convolutional networks for images such as MNIST's."""

from collections.abc import Sequence

import jax
from flax import nnx

from jaxrobust.models.conv import conv_general_dilated

# PyTorch's default, uniform on +-1/sqrt(fan_in), with which the recipes were tuned.
_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _conv(
    channels: int, features: int, size: int, stride: int, rngs: nnx.Rngs
) -> nnx.Conv:
    return nnx.Conv(
        channels,
        features,
        (size, size),
        strides=stride,
        padding=1,
        kernel_init=_uniform,
        conv_general_dilated=conv_general_dilated,
        rngs=rngs,
    )


def _halved(size: int) -> int:
    """Return the output size of a stride-2 convolution, padding 1, kernel 3 or 4."""
    return (size + 1) // 2


class TutorialConvNet(nnx.Module):
    """Convolutions 3x3 of 32, 32 (stride 2), 64, 64 (stride 2) features, 100, C.

    Kolter & Madry 2018, adversarial-ml-tutorial.org, chapter 3.

    Args:
      input_shape: (H, W, channels).
      num_classes: Number of logits C.
      rngs: Flax's random numbers for the initial weights.

    Example:
      >>> import jax.numpy as jnp
      >>> model = TutorialConvNet((28, 28, 1), 10, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((2, 28, 28, 1))).shape
      (2, 10)
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, *, rngs: nnx.Rngs):
        height, width, channels = input_shape
        self.conv1 = _conv(channels, 32, 3, 1, rngs)
        self.conv2 = _conv(32, 32, 3, 2, rngs)
        self.conv3 = _conv(32, 64, 3, 1, rngs)
        self.conv4 = _conv(64, 64, 3, 2, rngs)
        size = _halved(_halved(height)) * _halved(_halved(width)) * 64
        self.linear1 = nnx.Linear(size, 100, kernel_init=_uniform, rngs=rngs)
        self.linear2 = nnx.Linear(100, num_classes, kernel_init=_uniform, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits `[B, C]` of images `[B, H, W, channels]`."""
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = nnx.relu(conv(x))
        x = nnx.relu(self.linear1(x.reshape(x.shape[0], -1)))
        return self.linear2(x)


class SmallConvNet(nnx.Module):
    """Convolutions 4x4, stride 2, of 16 and 32 features, 100, C.

    Wong et al. 2020, arXiv:2001.03994, their MNIST model.

    Args:
      input_shape: (H, W, channels).
      num_classes: Number of logits C.
      rngs: Flax's random numbers for the initial weights.

    Example:
      >>> import jax.numpy as jnp
      >>> model = SmallConvNet((28, 28, 1), 10, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((2, 28, 28, 1))).shape
      (2, 10)
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, *, rngs: nnx.Rngs):
        height, width, channels = input_shape
        self.conv1 = _conv(channels, 16, 4, 2, rngs)
        self.conv2 = _conv(16, 32, 4, 2, rngs)
        size = (height // 2 // 2) * (width // 2 // 2) * 32
        self.linear1 = nnx.Linear(size, 100, kernel_init=_uniform, rngs=rngs)
        self.linear2 = nnx.Linear(100, num_classes, kernel_init=_uniform, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits `[B, C]` of images `[B, H, W, channels]`."""
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(x))))
        x = nnx.relu(self.linear1(x.reshape(x.shape[0], -1)))
        return self.linear2(x)


class MadryConvNet(nnx.Module):
    """Convolutions 5x5 of 32 and 64 features, each with 2x2 max-pooling, 1024, C.

    Madry et al. 2018, arXiv:1706.06083; MadryLab/mnist_challenge model.py, with its initial
    values: truncated normal of standard deviation 0.1, biases 0.1.

    Args:
      input_shape: (H, W, channels), H and W divisible by 4.
      num_classes: Number of logits C.
      rngs: Flax's random numbers for the initial weights.

    Example:
      >>> import jax.numpy as jnp
      >>> model = MadryConvNet((28, 28, 1), 10, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((2, 28, 28, 1))).shape
      (2, 10)
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, *, rngs: nnx.Rngs):
        height, width, channels = input_shape
        init = dict(
            kernel_init=nnx.initializers.truncated_normal(0.1),
            bias_init=nnx.initializers.constant(0.1),
            rngs=rngs,
        )
        options = dict(conv_general_dilated=conv_general_dilated, **init)
        self.conv1 = nnx.Conv(channels, 32, (5, 5), **options)
        self.conv2 = nnx.Conv(32, 64, (5, 5), **options)
        size = (height // 4) * (width // 4) * 64
        self.linear1 = nnx.Linear(size, 1024, **init)
        self.linear2 = nnx.Linear(1024, num_classes, **init)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits `[B, C]` of images `[B, H, W, channels]`."""
        x = _max_pool(nnx.relu(self.conv1(x)))
        x = _max_pool(nnx.relu(self.conv2(x)))
        x = nnx.relu(self.linear1(x.reshape(x.shape[0], -1)))
        return self.linear2(x)


def _max_pool(x: jax.Array) -> jax.Array:
    """2x2 max-pooling; its gradient avoids XLA's slow select-and-scatter on the CPU.

    The gradient is shared among equal maxima, where select-and-scatter takes the first.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.max(axis=(2, 4))
