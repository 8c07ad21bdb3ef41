"""Small Flax NNX networks, and the adapter from any NNX module to a pure function."""

from jaxrobust.models.adapter import logits_fn
from jaxrobust.models.convnet import MadryConvNet, SmallConvNet, TutorialConvNet
from jaxrobust.models.registry import NAMES, create

__all__ = [
    "NAMES",
    "MadryConvNet",
    "SmallConvNet",
    "TutorialConvNet",
    "create",
    "logits_fn",
]
