"""Models by name, as recipes and checkpoints know them."""

import difflib
from collections.abc import Sequence
from typing import Any

from flax import nnx

from jaxrobust.models.convnet import MadryConvNet, SmallConvNet, TutorialConvNet

_MODELS = {
    "madry_convnet": MadryConvNet,
    "small_convnet": SmallConvNet,
    "tutorial_convnet": TutorialConvNet,
}
NAMES = tuple(_MODELS)


def create(
    name: str,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    seed: int = 0,
    **settings: Any,
) -> nnx.Module:
    """Return a model with fresh weights.

    Args:
      name: One of `NAMES`.
      input_shape: Shape of one example, (H, W, channels).
      num_classes: Number of logits C.
      seed: Seed of the initial weights.
      **settings: Further arguments of the model.

    Returns:
      A Flax NNX module in training mode.

    Raises:
      ValueError: If no model has that name.

    Example:
      >>> model = create("small_convnet", input_shape=(8, 8, 1), num_classes=10)
      >>> type(model).__name__
      'SmallConvNet'
    """
    if name not in _MODELS:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no model {name!r}; there are {', '.join(NAMES)}.{hint}")
    rngs = nnx.Rngs(seed)
    return _MODELS[name](tuple(input_shape), num_classes, rngs=rngs, **settings)
