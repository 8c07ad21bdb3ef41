"""Residual network with 18 layers, in the form used on CIFAR."""

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
    default_normalization,
    dense,
    normalize,
    stages,
)
from jaxrobust.models.preact_resnet import batch_norm


class ResidualBlock(nnx.Module):
    """Two times 3x3 convolution and norm, added to the input before the activation.

    He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), figure 2.

    Args:
        in_features: channels of the input.
        out_features: channels of the output.
        strides: step of the first convolution, in pixels.
        activation: "relu" or "silu".
        rngs: source of the initial weights.

    Raises:
        ValueError: if there is no such activation.

    Example:
        >>> import jax.numpy as jnp
        >>> def run(x):
        ...     return ResidualBlock(4, 8, strides=2, rngs=nnx.Rngs(0))(x)
        >>> jax.eval_shape(run, jnp.zeros((2, 8, 8, 4))).shape
        (2, 4, 4, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        strides: int = 1,
        activation: Activation = "relu",
        rngs: nnx.Rngs,
    ) -> None:
        self.activation = check_activation(activation)
        options: dict[str, Any] = {"use_bias": False, "rngs": rngs}
        self.conv1 = conv(
            in_features, out_features, 3, strides=strides, padding=1, **options
        )
        self.norm1 = batch_norm(out_features, rngs=rngs)
        self.conv2 = conv(out_features, out_features, 3, padding=1, **options)
        self.norm2 = batch_norm(out_features, rngs=rngs)
        # The shortcut is the identity where the shapes allow it.
        self.shortcut, self.shortcut_norm = nnx.data(None), nnx.data(None)
        if strides != 1 or in_features != out_features:
            self.shortcut = conv(
                in_features, out_features, 1, strides=strides, **options
            )
            self.shortcut_norm = batch_norm(out_features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return [B, H', W', out_features] for x [B, H, W, in_features]."""
        skip = x
        if self.shortcut is not None and self.shortcut_norm is not None:
            skip = self.shortcut_norm(self.shortcut(x))
        residual = activate(self.activation, self.norm1(self.conv1(x)))
        return activate(self.activation, skip + self.norm2(self.conv2(residual)))


class ResNet18(nnx.Module):
    """ResNet-18 with CIFAR's stem, a 3x3 convolution without stride or pooling.

    He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), in the form of
    kuangliu/pytorch-cifar and RobustBench.

    Args:
        input_shape: shape of one image, (H, W, C).
        num_classes: number of logits.
        width: channels of the first stage; the others have 2, 4 and 8 times as many.
        activation: "relu", or "silu", which is smooth.
        normalization: channel statistics; `None` means CIFAR-10's for three channels
            and raw pixels otherwise.
        rngs: source of the initial weights.

    Raises:
        ValueError: if there is no such activation.

    Example:
        >>> import jax.numpy as jnp
        >>> def run(x):
        ...     return ResNet18(x.shape[1:], 10, rngs=nnx.Rngs(0))(x)
        >>> jax.eval_shape(run, jnp.zeros((2, 32, 32, 3))).shape
        (2, 10)
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        width: int = 64,
        activation: Activation = "relu",
        normalization: Normalization | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        channels = input_shape[-1]
        normalization = default_normalization(normalization, channels)
        self.normalization, self.activation = normalization, activation
        self.stem = conv(channels, width, 3, padding=1, use_bias=False, rngs=rngs)
        self.norm = batch_norm(width, rngs=rngs)
        widths = [width * 2**i for i in range(4)]
        self.blocks, features = stages(
            ResidualBlock, width, widths, 2, activation=activation, rngs=rngs
        )
        self.output = dense(features, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits [B, num_classes] of the images [B, H, W, C]."""
        x = self.stem(normalize(self.normalization, x))
        x = activate(self.activation, self.norm(x))
        for block in self.blocks:
            x = block(x)
        return self.output(x.mean((1, 2)))
