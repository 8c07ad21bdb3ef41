"""Pre-activation residual network with 18 layers, in the form used on CIFAR."""

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


def batch_norm(num_features: int, *, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Return batch normalisation with the constants of PyTorch.

    Args:
        num_features: number of channels.
        rngs: source of the initial parameters.

    Returns:
        The layer; its running mean keeps 0.9 of the old value at every step, where
        Flax's default keeps 0.99.

    Example:
        >>> batch_norm(16, rngs=nnx.Rngs(0)).momentum
        0.9
    """
    return nnx.BatchNorm(num_features, momentum=0.9, epsilon=1e-5, rngs=rngs)


class PreActBlock(nnx.Module):
    """Two times norm, activation, 3x3 convolution, added to the input.

    He et al., "Identity Mappings in Deep Residual Networks" (ECCV 2016).

    Args:
        in_features: channels of the input.
        out_features: channels of the output.
        strides: step of the first convolution, in pixels.
        kernel_init: initialiser of the convolutions.
        activation: "relu" or "silu".
        activated_shortcut: whether the shortcut's convolution, where there is one, sees
            the normalised and activated input, as in the paper, or the input itself.
        rngs: source of the initial weights.

    Raises:
        ValueError: if there is no such activation.

    Example:
        >>> import jax.numpy as jnp
        >>> def run(x):
        ...     return PreActBlock(4, 8, strides=2, rngs=nnx.Rngs(0))(x)
        >>> jax.eval_shape(run, jnp.zeros((2, 8, 8, 4))).shape
        (2, 4, 4, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        strides: int = 1,
        kernel_init: nnx.Initializer | None = None,
        activation: Activation = "relu",
        activated_shortcut: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        self.activation = check_activation(activation)
        self.activated_shortcut = activated_shortcut
        options: dict[str, Any] = {"use_bias": False, "rngs": rngs}
        if kernel_init is not None:
            options["kernel_init"] = kernel_init
        self.norm1 = batch_norm(in_features, rngs=rngs)
        self.conv1 = conv(
            in_features, out_features, 3, strides=strides, padding=1, **options
        )
        self.norm2 = batch_norm(out_features, rngs=rngs)
        self.conv2 = conv(out_features, out_features, 3, padding=1, **options)
        # The shortcut is the identity where the shapes allow it.
        self.shortcut = nnx.data(None)
        if strides != 1 or in_features != out_features:
            self.shortcut = conv(
                in_features, out_features, 1, strides=strides, **options
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return [B, H', W', out_features] for x [B, H, W, in_features]."""
        active = activate(self.activation, self.norm1(x))
        skip = x
        if self.shortcut is not None:
            skip = self.shortcut(active if self.activated_shortcut else x)
        residual = self.conv1(active)
        return skip + self.conv2(activate(self.activation, self.norm2(residual)))


class PreActResNet18(nnx.Module):
    """Pre-activation ResNet-18 with CIFAR's stem, a 3x3 convolution without stride.

    He et al., "Identity Mappings in Deep Residual Networks" (ECCV 2016); the standard
    network of fast adversarial training (Wong et al., ICLR 2020; Rice et al., 2020).

    Args:
        input_shape: shape of one image, (H, W, C).
        num_classes: number of logits.
        width: channels of the first stage; the others have 2, 4 and 8 times as many.
        final_norm: normalise and rectify before the pooling, as the papers above do.
            `False` is the widespread variant without it (kuangliu/pytorch-cifar).
        activation: "relu", or "silu", which is smooth.
        activated_shortcut: `False` gives the convolutions of the shortcuts the input of
            their block before norm and activation, a variant of some published weights.
        normalization: channel statistics; `None` means CIFAR-10's for three channels
            and raw pixels otherwise.
        rngs: source of the initial weights.

    Raises:
        ValueError: if there is no such activation.

    Example:
        >>> import jax.numpy as jnp
        >>> def run(x):
        ...     return PreActResNet18(x.shape[1:], 10, rngs=nnx.Rngs(0))(x)
        >>> jax.eval_shape(run, jnp.zeros((2, 32, 32, 3))).shape
        (2, 10)
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        width: int = 64,
        final_norm: bool = True,
        activation: Activation = "relu",
        activated_shortcut: bool = True,
        normalization: Normalization | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        channels = input_shape[-1]
        normalization = default_normalization(normalization, channels)
        self.normalization, self.activation = normalization, activation
        self.stem = conv(channels, width, 3, padding=1, use_bias=False, rngs=rngs)
        widths = [width * 2**i for i in range(4)]
        self.blocks, features = stages(
            PreActBlock,
            width,
            widths,
            2,
            activation=activation,
            activated_shortcut=activated_shortcut,
            rngs=rngs,
        )
        self.norm = batch_norm(features, rngs=rngs) if final_norm else nnx.data(None)
        self.output = dense(features, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits [B, num_classes] of the images [B, H, W, C]."""
        x = self.stem(normalize(self.normalization, x))
        for block in self.blocks:
            x = block(x)
        if self.norm is not None:
            x = activate(self.activation, self.norm(x))
        return self.output(x.mean((1, 2)))
