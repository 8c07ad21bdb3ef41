"""Networks by name."""

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import nnx

from jaxrobust.models.convnet import (
    MadryConvNet,
    SmallConvNet,
    TradesConvNet,
    TutorialConvNet,
)
from jaxrobust.models.layers import Normalization
from jaxrobust.models.linear import Linear
from jaxrobust.models.mlp import MLP
from jaxrobust.models.preact_resnet import PreActResNet18
from jaxrobust.models.resnet import ResNet18
from jaxrobust.models.small_resnet import SmallResNet
from jaxrobust.models.wide_resnet import WideResNet

_MODELS: dict[str, Callable[..., nnx.Module]] = {
    "linear": Linear,
    "mlp": MLP,
    "tutorial_convnet": TutorialConvNet,
    "madry_convnet": MadryConvNet,
    "small_convnet": SmallConvNet,
    "trades_convnet": TradesConvNet,
    "small_resnet": SmallResNet,
    "resnet18": ResNet18,
    "preact_resnet18": PreActResNet18,
    "wide_resnet28_10": functools.partial(WideResNet, depth=28, width=10),
    "wide_resnet34_10": functools.partial(WideResNet, depth=34, width=10),
}

NAMES: tuple[str, ...] = tuple(_MODELS)


def create(
    name: str,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    seed: int = 0,
    **kwargs: Any,
) -> nnx.Module:
    """Return a new network with random weights.

    Args:
        name: one of `NAMES`.
        input_shape: shape of one image, (H, W, C).
        num_classes: number of logits.
        seed: seed of the initial weights.
        **kwargs: further arguments of the network, such as `width`, `activation` or
            `normalization`, which may be a mapping with `mean` and `std`, as in JSON.

    Returns:
        A Flax NNX module, images [B, H, W, C] in [0, 1] -> logits [B, num_classes].

    Raises:
        ValueError: if the name is unknown, or `input_shape` is not (H, W, C).

    Example:
        >>> import jax.numpy as jnp
        >>> model = create("mlp", input_shape=(8, 8, 1), num_classes=10)
        >>> model(jnp.zeros((2, 8, 8, 1))).shape
        (2, 10)
    """
    if name not in _MODELS:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"there is no model {name!r}: take one of {', '.join(NAMES)}{hint}"
        )
    shape = tuple(input_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(
            f"input_shape is (height, width, channels) of one image without the batch, "
            f"such as (28, 28, 1), not {shape}"
        )
    if isinstance(kwargs.get("normalization"), Mapping):
        kwargs["normalization"] = Normalization(**kwargs["normalization"])
    return _MODELS[name](shape, num_classes, rngs=nnx.Rngs(seed), **kwargs)
