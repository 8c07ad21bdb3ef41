"""A residual network for 32 x 32 images that trains on two processor cores."""

from collections.abc import Sequence

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
from jaxrobust.models.preact_resnet import PreActBlock, batch_norm


class SmallResNet(nnx.Module):
    """A pre-activation residual network whose first convolution has stride 2.

    He et al., "Identity Mappings in Deep Residual Networks" (ECCV 2016), with few layers of
    32 channels or more: on processors thin layers at full resolution cost most of the time.
    The stride of the stem and a smooth activation also make training with one-step attacks
    collapse less often (Li et al. 2022, arXiv:2209.02684).

    Args:
        input_shape: shape of one image, (H, W, C).
        num_classes: number of logits.
        width: channels of the first stage; the two others have 2 and 4 times as many.
        num_blocks: residual blocks in each of the three stages.
        activation: "relu", or "silu", which is smooth.
        normalization: channel statistics; `None` means CIFAR-10's for three channels
            and raw pixels otherwise.
        rngs: source of the initial weights.

    Raises:
        ValueError: if there is no such activation.

    Example:
        >>> import jax.numpy as jnp
        >>> def run(x):
        ...     return SmallResNet(x.shape[1:], 10, rngs=nnx.Rngs(0))(x)
        >>> jax.eval_shape(run, jnp.zeros((2, 32, 32, 3))).shape
        (2, 10)
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        width: int = 32,
        num_blocks: int = 1,
        activation: Activation = "silu",
        normalization: Normalization | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        channels = input_shape[-1]
        normalization = default_normalization(normalization, channels)
        self.activation = check_activation(activation)
        self.normalization = normalization
        options = {"padding": 1, "use_bias": False, "rngs": rngs}
        self.stem = conv(channels, width, 3, strides=2, **options)
        widths = [width * 2**i for i in range(3)]
        self.blocks, features = stages(
            PreActBlock, width, widths, num_blocks, activation=activation, rngs=rngs
        )
        self.norm = batch_norm(features, rngs=rngs)
        self.output = dense(features, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits [B, num_classes] of the images [B, H, W, C]."""
        x = self.stem(normalize(self.normalization, x))
        for block in self.blocks:
            x = block(x)
        return self.output(activate(self.activation, self.norm(x)).mean((1, 2)))
