"""The pieces that the networks share: convolution, dense layer, normalisation.

Weights start as in PyTorch, uniform in +-1/sqrt(fan_in), because the published
recipes for robust training were tuned from there; Flax's own default (LeCun normal)
has a standard deviation that is sqrt(3) times larger, and zero biases.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

# torch.nn.Conv2d and Linear: kaiming_uniform(a=sqrt(5)) is U(+-1/sqrt(fan_in)).
# Module-level, so that two models of one architecture have equal static parts.
uniform_fan_in = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@functools.cache
def uniform_bias(fan_in: int) -> nnx.Initializer:
    """Return the initialiser U(+-1/sqrt(fan_in)) that PyTorch uses for a bias.

    Args:
        fan_in: number of inputs that one output of the layer sums over.

    Returns:
        An initialiser `(key, shape, dtype) -> array`, the same object for the same
        `fan_in`.

    Example:
        >>> bias = uniform_bias(100)(jax.random.key(0), (1000,))
        >>> bool(abs(bias).max() <= 0.1)
        True
    """
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv(
    in_features: int,
    out_features: int,
    kernel_size: int,
    *,
    strides: int = 1,
    padding: int = 0,
    rngs: nnx.Rngs,
    **options: Any,
) -> nnx.Conv:
    """Return a 2-D convolution with a square kernel.

    Args:
        in_features: channels of the input.
        out_features: channels of the output.
        kernel_size: height and width of the kernel, in pixels.
        strides: step of the window, in pixels.
        padding: zeros on each side of the image, in pixels.
        rngs: source of the initial weights.
        **options: further arguments of `flax.nnx.Conv`, such as `use_bias` or
            `kernel_init`.

    Returns:
        The layer, [B, H, W, in_features] -> [B, H', W', out_features].

    Example:
        >>> layer = conv(1, 8, 4, strides=2, padding=1, rngs=nnx.Rngs(0))
        >>> layer(jnp.zeros((5, 28, 28, 1))).shape
        (5, 14, 14, 8)
    """
    options = {
        "kernel_init": uniform_fan_in,
        "bias_init": uniform_bias(in_features * kernel_size**2),
        **options,
    }
    return nnx.Conv(
        in_features,
        out_features,
        (kernel_size, kernel_size),
        strides,
        padding=((padding, padding), (padding, padding)),
        rngs=rngs,
        **options,
    )


def dense(
    in_features: int, out_features: int, *, rngs: nnx.Rngs, **options: Any
) -> nnx.Linear:
    """Return a fully connected layer with PyTorch's initial weights.

    Args:
        in_features: size of the input.
        out_features: size of the output.
        rngs: source of the initial weights.
        **options: further arguments of `flax.nnx.Linear`.

    Returns:
        The layer, [B, in_features] -> [B, out_features].

    Example:
        >>> dense(784, 10, rngs=nnx.Rngs(0))(jnp.zeros((5, 784))).shape
        (5, 10)
    """
    options = {
        "kernel_init": uniform_fan_in,
        "bias_init": uniform_bias(in_features),
        **options,
    }
    return nnx.Linear(in_features, out_features, rngs=rngs, **options)


Activation = Literal["relu", "silu"]

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def check_activation(name: Activation) -> Activation:
    """Return the name of an activation, or raise where there is none of it.

    Args:
        name: "relu" or "silu".

    Raises:
        ValueError: if there is no such activation.

    Example:
        >>> check_activation("silu")
        'silu'
    """
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"there is no activation {name!r}: take one of {', '.join(_ACTIVATIONS)}"
        )
    return name


def activate(name: Activation, x: jax.Array) -> jax.Array:
    """Apply an activation; "silu" is smooth, which helps robust training.

    Xie et al. 2020, arXiv:2006.14536. By name, so that two models of one architecture have
    equal static parts.

    Args:
        name: "relu", or "silu", x * sigmoid(x).
        x: an array of any shape.

    Returns:
        An array of the same shape.

    Raises:
        ValueError: if there is no such activation.

    Example:
        >>> print(activate("relu", jnp.array([-1.0, 2.0])))
        [0. 2.]
    """
    return _ACTIVATIONS[check_activation(name)](x)


@dataclasses.dataclass(frozen=True)
class Normalization:
    """Subtracts a mean and divides by a standard deviation, channel by channel.

    It belongs to the model, so that threats and data speak of images in [0, 1].

    Args:
        mean: one mean per channel, in the units of the pixels.
        std: one standard deviation per channel, likewise.

    Raises:
        ValueError: if `mean` and `std` differ in length or a deviation is not positive.

    Example:
        >>> Normalization(mean=(0.5,), std=(0.25,))(jnp.ones((1, 2, 2, 1))).max()
        Array(2., dtype=float32)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Make the fields hashable and checks them."""
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        if len(self.mean) != len(self.std) or min(self.std, default=0.0) <= 0:
            raise ValueError(
                f"mean {self.mean} and std {self.std} need one number per channel, "
                "and every deviation must be positive"
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the images [B, H, W, C] and keeps their dtype."""
        if x.shape[-1] != len(self.mean):
            raise ValueError(
                f"images of shape {x.shape} have {x.shape[-1]} channels (the last "
                f"axis), the normalisation has {len(self.mean)}: give it one mean and "
                "one deviation per channel"
            )
        shape = (1,) * (x.ndim - 1) + (-1,)
        mean = jnp.asarray(self.mean, x.dtype).reshape(shape)
        return (x - mean) / jnp.asarray(self.std, x.dtype).reshape(shape)


# Channel statistics of the CIFAR-10 training images.
CIFAR10 = Normalization((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))


def normalize(normalization: Normalization | None, x: jax.Array) -> jax.Array:
    """Apply `normalization` to `x`, or nothing if it is `None`.

    Args:
        normalization: the statistics, or `None`.
        x: images [B, H, W, C].

    Returns:
        Images of the same shape.

    Example:
        >>> normalize(None, jnp.ones((1, 2, 2, 1))).shape
        (1, 2, 2, 1)
    """
    return x if normalization is None else normalization(x)


def default_normalization(
    normalization: Normalization | None, channels: int
) -> Normalization | None:
    """Return `normalization`, or what a residual network takes where none is given.

    Args:
        normalization: channel statistics, or `None`.
        channels: channels of the images.

    Returns:
        The statistics; for `None` those of CIFAR-10 if there are three channels.

    Example:
        >>> default_normalization(None, 3) is CIFAR10, default_normalization(None, 1)
        (True, None)
    """
    return CIFAR10 if normalization is None and channels == 3 else normalization


def stages(
    block: Callable[..., nnx.Module],
    in_features: int,
    widths: Sequence[int],
    num_blocks: int,
    **options: Any,
) -> tuple[nnx.List, int]:
    """Return the blocks of a residual network; each stage but the first halves the image.

    Args:
        block: makes one, `(in_features, out_features, *, strides, **options)`.
        in_features: channels before the first block.
        widths: channels of each stage.
        num_blocks: blocks of each stage.
        **options: further arguments of every block, `rngs` among them.

    Returns:
        The blocks in their order, and the channels after the last.

    Example:
        >>> def block(in_features, out_features, *, strides, rngs):
        ...     return conv(in_features, out_features, 3, strides=strides, rngs=rngs)
        >>> blocks, features = stages(block, 3, (4, 8), 2, rngs=nnx.Rngs(0))
        >>> [layer.strides for layer in blocks], features
        ([1, 1, 2, 1], 8)
    """
    features, blocks = in_features, []
    for stage, width in enumerate(widths):
        for index in range(num_blocks):
            strides = 2 if stage > 0 and index == 0 else 1
            blocks.append(block(features, width, strides=strides, **options))
            features = width
    return nnx.List(blocks), features
