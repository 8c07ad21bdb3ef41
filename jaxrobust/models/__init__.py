"""Flax NNX networks, weights for them, the adapter from a network to a pure function."""

from jaxrobust.models.adapter import logits_fn as logits_fn
from jaxrobust.models.convnet import MadryConvNet as MadryConvNet
from jaxrobust.models.convnet import SmallConvNet as SmallConvNet
from jaxrobust.models.convnet import TutorialConvNet as TutorialConvNet
from jaxrobust.models.layers import CIFAR10 as CIFAR10
from jaxrobust.models.layers import Normalization as Normalization
from jaxrobust.models.linear import Linear as Linear
from jaxrobust.models.mlp import MLP as MLP
from jaxrobust.models.preact_resnet import PreActResNet18 as PreActResNet18
from jaxrobust.models.registry import NAMES as NAMES
from jaxrobust.models.registry import create as create
from jaxrobust.models.resnet import ResNet18 as ResNet18
from jaxrobust.models.shipped import SHIPPED as SHIPPED
from jaxrobust.models.shipped import Card as Card
from jaxrobust.models.shipped import card as card
from jaxrobust.models.shipped import load as load
from jaxrobust.models.small_resnet import SmallResNet as SmallResNet
from jaxrobust.models.state_dict import read_state_dict as read_state_dict
from jaxrobust.models.torch_weights import from_torch as from_torch
from jaxrobust.models.wide_resnet import WideResNet as WideResNet
