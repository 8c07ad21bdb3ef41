"""The networks of `jaxrobust.models` in torch, with the same weights and logits.

Written as a user of torch would write them: NCHW inputs, layers of torch.nn. They are
put into `channels_last`, which on the CPU was as fast as the default layout or faster.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.task import Problem

# Logits are of order 1; the libraries sum some thousand products in different orders.
_TOLERANCE = 1e-4


class TutorialConvNet(nn.Module):
    """Twin of `jaxrobust.models.TutorialConvNet`."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        height, width, channels = input_shape
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv4 = nn.Conv2d(64, 64, 3, stride=2, padding=1)
        self.flat = (64, -(-height // 4), -(-width // 4))
        self.dense = nn.Linear(int(np.prod(self.flat)), 100)
        self.output = nn.Linear(100, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits `[B, num_classes]` of images `[B, C, H, W]`."""
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = functional.relu(layer(x))
        return self.output(functional.relu(self.dense(x.flatten(1))))


class MadryConvNet(nn.Module):
    """Twin of `jaxrobust.models.MadryConvNet`."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        height, width, channels = input_shape
        self.conv1 = nn.Conv2d(channels, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.flat = (64, -(-height // 4), -(-width // 4))
        self.dense = nn.Linear(int(np.prod(self.flat)), 1024)
        self.output = nn.Linear(1024, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits `[B, num_classes]` of images `[B, C, H, W]`."""
        for layer in (self.conv1, self.conv2):
            x = functional.max_pool2d(functional.relu(layer(x)), 2, ceil_mode=True)
        return self.output(functional.relu(self.dense(x.flatten(1))))


class SmallConvNet(nn.Module):
    """Twin of `jaxrobust.models.SmallConvNet`."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        height, width, channels = input_shape
        self.conv1 = nn.Conv2d(channels, 16, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 4, stride=2, padding=1)
        self.flat = (32, height // 4, width // 4)
        self.dense = nn.Linear(int(np.prod(self.flat)), 100)
        self.output = nn.Linear(100, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits `[B, num_classes]` of images `[B, C, H, W]`."""
        for layer in (self.conv1, self.conv2):
            x = functional.relu(layer(x))
        return self.output(functional.relu(self.dense(x.flatten(1))))


class Cifar10(nn.Module):
    """The normalisation of CIFAR-10; it has no part in the state_dict."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        if input_shape[-1] != 3:
            raise ValueError(
                f"the twin takes images of three channels, not {input_shape[-1]}"
            )
        mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
        for name, values in (("mean", mean), ("std", std)):
            buffer = torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised images."""
        return (x - self.mean) / self.std


class PreActBlock(nn.Module):
    """Twin of `jaxrobust.models.preact_resnet.PreActBlock`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        strides: int,
        activation: Callable = functional.relu,
    ) -> None:
        super().__init__()
        self.activation = activation
        three = {"kernel_size": 3, "padding": 1, "bias": False}
        self.norm1 = nn.BatchNorm2d(in_features)
        self.conv1 = nn.Conv2d(in_features, out_features, stride=strides, **three)
        self.norm2 = nn.BatchNorm2d(out_features)
        self.conv2 = nn.Conv2d(out_features, out_features, **three)
        self.shortcut = None
        if strides != 1 or in_features != out_features:
            self.shortcut = nn.Conv2d(
                in_features, out_features, 1, stride=strides, bias=False
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `[B, out_features, H', W']`."""
        active = self.activation(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(active)
        residual = self.conv1(active)
        return skip + self.conv2(self.activation(self.norm2(residual)))


class PreActResNet18(nn.Module):
    """Twin of `jaxrobust.models.PreActResNet18`, with CIFAR-10's normalisation."""

    flat = None

    def __init__(
        self, input_shape: tuple[int, ...], num_classes: int, *, width: int = 64
    ) -> None:
        super().__init__()
        self.cifar10 = Cifar10(input_shape)
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        features, blocks = width, []
        for stage in range(4):
            for index in range(2):
                strides = 2 if stage > 0 and index == 0 else 1
                blocks.append(PreActBlock(features, width * 2**stage, strides))
                features = width * 2**stage
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.BatchNorm2d(features)
        self.output = nn.Linear(features, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits `[B, num_classes]` of images `[B, C, H, W]`."""
        x = self.stem(self.cifar10(x))
        for block in self.blocks:
            x = block(x)
        x = functional.relu(self.norm(x))
        return self.output(x.mean((2, 3)))


class SmallResNet(nn.Module):
    """Twin of `jaxrobust.models.SmallResNet` with SiLU and CIFAR-10's normalisation."""

    flat = None

    def __init__(
        self, input_shape: tuple[int, ...], num_classes: int, *, width: int = 32
    ) -> None:
        super().__init__()
        self.cifar10 = Cifar10(input_shape)
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        features, blocks = width, []
        for stage in range(3):
            strides = 1 if stage == 0 else 2
            out = width * 2**stage
            blocks.append(PreActBlock(features, out, strides, functional.silu))
            features = out
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.BatchNorm2d(features)
        self.output = nn.Linear(features, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits `[B, num_classes]` of images `[B, C, H, W]`."""
        x = self.stem(self.cifar10(x))
        for block in self.blocks:
            x = block(x)
        x = functional.silu(self.norm(x))
        return self.output(x.mean((2, 3)))


_TWINS: dict[str, Any] = {
    "tutorial_convnet": TutorialConvNet,
    "madry_convnet": MadryConvNet,
    "small_convnet": SmallConvNet,
    "preact_resnet18": PreActResNet18,
    "small_resnet": SmallResNet,
}
# Names of Flax NNX on the left, of torch on the right.
_NAMES = {"kernel": "weight", "scale": "weight"}
_NAMES |= {"mean": "running_mean", "var": "running_var"}


def load(problem: Problem) -> nn.Module:
    """Return the twin of the problem's model, with its weights, in evaluation mode.

    Raises:
      ValueError: Where there is no twin, or its logits differ by more than 1e-4.
    """
    spec = dict(problem.settings["model"])
    name = spec.pop("name")
    spec.pop("seed", None)
    if name not in _TWINS:
        raise ValueError(f"{name} has no twin in torch: there are {', '.join(_TWINS)}")
    model = _TWINS[name](**spec | {"input_shape": tuple(spec["input_shape"])})
    state = model.state_dict()
    for path, array in problem.weights.items():
        *layer, kind = path.split(".")
        target = ".".join([*layer, _NAMES.get(kind, kind)])
        state[target] = torch.from_numpy(_transposed(path, array, model.flat).copy())
    model.load_state_dict(state)
    model = model.eval().to(memory_format=torch.channels_last)
    _check(model, problem)
    return model


def images(x: np.ndarray) -> torch.Tensor:
    """Return images `[B, H, W, C]` as `[B, C, H, W]`, in `channels_last`."""
    return torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2)


def _transposed(path: str, array: np.ndarray, flat: Any) -> np.ndarray:
    if array.ndim == 4:  # HWIO to OIHW
        return array.transpose(3, 2, 0, 1)
    if array.ndim < 2:
        return array
    if path == "dense.kernel" and flat is not None:
        # The flattened image: channels last in JAX, channels first in torch.
        channels, height, width = flat
        blocks = array.reshape(height, width, channels, -1)
        array = blocks.transpose(2, 0, 1, 3).reshape(array.shape)
    return array.T


def _check(model: nn.Module, problem: Problem) -> None:
    with torch.no_grad():
        logits = model(images(problem.arrays["probe"])).numpy()
    expected = problem.arrays["probe_logits"]
    # Relative where logits are large, as a trained model's are.
    scale = max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(logits - expected).max()) / scale
    if not difference <= _TOLERANCE:
        raise ValueError(
            f"the twin's logits differ by {difference:.2g} from jaxrobust's: the "
            "weights were not copied correctly"
        )
