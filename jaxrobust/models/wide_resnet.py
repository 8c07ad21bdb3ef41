"""Wide residual networks, the largest models of the CIFAR robustness tables."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from jaxrobust.models.layers import (
    Activation,
    Normalization,
    activate,
    conv,
    default_normalization,
    dense,
    normalize,
    stages,
)
from jaxrobust.models.preact_resnet import PreActBlock, batch_norm

# The authors' initialisation: normal with variance 2 / (kernel area * out_features).
_FAN_OUT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class WideResNet(nnx.Module):
    """WRN-depth-width.

    Zagoruyko & Komodakis, "Wide Residual Networks" (BMVC 2016), without dropout. The
    first block of the first stage differs from that paper only for `width=1`, where
    its shortcut is the identity.

    Args:
        input_shape: shape of one image, (H, W, C).
        num_classes: number of logits.
        depth: number of layers, 6 n + 4.
        width: the stages have 16, 32 and 64 times as many channels.
        activation: "relu", or "silu", which is smooth.
        normalization: channel statistics; `None` means CIFAR-10's for three channels
            and raw pixels otherwise.
        rngs: source of the initial weights.

    Raises:
        ValueError: if `depth` is not 6 n + 4 with n >= 1, or there is no such activation.

    Example:
        >>> import jax.numpy as jnp
        >>> def run(x):
        ...     return WideResNet(x.shape[1:], 10, depth=16, rngs=nnx.Rngs(0))(x)
        >>> jax.eval_shape(run, jnp.zeros((2, 32, 32, 3))).shape
        (2, 10)
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        depth: int = 28,
        width: int = 10,
        activation: Activation = "relu",
        normalization: Normalization | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(
                f"depth={depth} is not 6 n + 4 with n >= 1: take 10, 16, 22, 28, 34 ..."
            )
        channels = input_shape[-1]
        normalization = default_normalization(normalization, channels)
        self.normalization, self.activation = normalization, activation
        options: dict[str, Any] = {"kernel_init": _FAN_OUT, "rngs": rngs}
        self.stem = conv(channels, 16, 3, padding=1, use_bias=False, **options)
        options["activation"] = activation
        widths = [16 * width * 2**i for i in range(3)]
        self.blocks, features = stages(
            PreActBlock, 16, widths, (depth - 4) // 6, **options
        )
        self.norm = batch_norm(features, rngs=rngs)
        self.output = dense(
            features, num_classes, bias_init=nnx.initializers.zeros_init(), rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits [B, num_classes] of the images [B, H, W, C]."""
        x = self.stem(normalize(self.normalization, x))
        for block in self.blocks:
            x = block(x)
        return self.output(activate(self.activation, self.norm(x)).mean((1, 2)))
