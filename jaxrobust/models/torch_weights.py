"""Weights of PyTorch in the networks that are here: names mapped, layouts turned.

`docs/weights.md` says what differs, and what cannot be seen in weights.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from jaxrobust.models import arrays
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
from jaxrobust.models.registry import create
from jaxrobust.models.resnet import ResNet18
from jaxrobust.models.small_resnet import SmallResNet
from jaxrobust.models.wide_resnet import WideResNet


def from_torch(
    state: Mapping[str, Any],
    model: str | nnx.Module,
    *,
    input_shape: Sequence[int],
    num_classes: int | None = None,
    names: Mapping[str, str] | None = None,
    source: str = "the state",
    **kwargs: Any,
) -> nnx.Module:
    """Return one of our networks with the weights of its PyTorch counterpart.

    A prefix of all names (`module.`, `model.`) and `num_batches_tracked` do not matter. The
    channel statistics that normalise the inputs are those in the state (`mean` and `std`,
    or `mu` and `sigma`), else the argument `normalization`, else none: raw pixels.
    An activation cannot be seen in weights: give it.

    Args:
        state: NumPy arrays (or tensors on the CPU) by name, as of a PyTorch `state_dict`.
        model: a name of `NAMES`, or a network made by `create`, which is not changed.
        input_shape: shape of one image, (H, W, C).
        num_classes: number of logits; goes with a name.
        names: our layers with other names in PyTorch, such as {"output": "fc"}.
        source: where the state comes from, for the message of an error.
        **kwargs: further arguments of `create`; go with a name.

    Returns:
        The network in evaluation mode, images [B, H, W, C] in [0, 1] -> logits [B, C].

    Raises:
        ValueError: if the state does not fit; the message names missing and surplus arrays.
        TypeError: if `model` is neither a name nor one of our networks.

    Example:
        >>> state = {"1.weight": np.eye(3, 4), "1.bias": np.zeros(3)}
        >>> model = from_torch(state, "linear", input_shape=(2, 2, 1), num_classes=3)
        >>> print(model(np.arange(4, dtype=np.float32).reshape(1, 2, 2, 1)))
        [[0. 1. 2.]]
    """
    shape = tuple(input_shape)
    state = {n: np.asarray(a) for n, a in state.items() if not n.endswith(_UNUSED)}
    network = _network(model, shape, num_classes, kwargs)
    if not isinstance(network, Linear):
        found = _pop_statistics(state, shape[-1]) or network.normalization
        if kwargs.get("normalization") and found != network.normalization:
            raise ValueError(f"{source} holds the {found}: leave normalization out")
        network.normalization = found
    layers = _TABLES[type(network)](network) | dict(names or {})
    leaves = arrays.named(network)
    theirs = {name: _torch_name(name, layers) for name in leaves}
    needed = {theirs[name]: _torch_shape(leaf.shape) for name, leaf in leaves.items()}
    state = _without_prefix(state, next(iter(needed)))
    if isinstance(network, WideResNet):
        # TRADES' code, which others took over, makes blocks that it never calls.
        state = {n: a for n, a in state.items() if not n.startswith("sub_block1.")}
    arrays.check(needed, arrays.shapes(state), source)
    if type(network) in _FLATTENED:
        layer, side = _FLATTENED[type(network)]
        name = theirs[f"{layer}.kernel"]
        state[name] = _channels_last(state[name], side(shape[0]), side(shape[1]))
    ours = {name: _turned(state[theirs[name]]) for name in leaves}
    result = arrays.from_arrays(network, ours, source=source)
    result.eval()
    return result


def _network(model: Any, shape: tuple, num_classes: int | None, kwargs: dict) -> Any:
    """Return a network to fill; made from a name, it is abstract: no weights are drawn."""
    if isinstance(model, str):
        if num_classes is None:
            raise ValueError(f"num_classes is needed to make a {model}")
        options: dict[str, Any] = {"input_shape": shape, "num_classes": num_classes}
        network: Any = nnx.eval_shape(lambda: create(model, **options, **kwargs))
        if not isinstance(network, Linear) and kwargs.get("normalization") is None:
            # Raw pixels, also where a new network takes CIFAR-10's statistics.
            network.normalization = None
        return network
    if type(model) not in _TABLES:
        known = ", ".join(table.__name__ for table in _TABLES)
        raise TypeError(
            f"model is a {type(model).__name__}: give a name of jaxrobust.models.NAMES, or "
            f"a network of one of the classes {known}"
        )
    if num_classes is not None or kwargs:
        given = ", ".join([*kwargs, *["num_classes"] * (num_classes is not None)])
        raise TypeError(f"{given}: goes with a name; the network given is as it is")
    return nnx.clone(model)


def _pop_statistics(state: dict[str, Any], channels: int) -> Normalization | None:
    """Take the channel statistics out of the state, if there are any."""
    last = {name.rsplit(".", 1)[-1]: name for name in state}
    for mean, std in (("mean", "std"), ("mu", "sigma")):
        if mean in last and std in last:
            pair = (state.pop(last[kind]).ravel() for kind in (mean, std))
            values = (np.broadcast_to(a, channels) if a.size == 1 else a for a in pair)
            return Normalization(*(tuple(a.tolist()) for a in values))
    return None


def _without_prefix(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Take what DataParallel and wrappers put before all names away; `name` shows it."""
    prefixes = [n.removesuffix(name) for n in state if n.endswith(f".{name}")]
    prefix = "" if name in state else min(prefixes, key=len, default="")
    return {n.removeprefix(prefix): array for n, array in state.items()}


_UNUSED = "num_batches_tracked"
_KINDS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_KINDS |= {"mean": "running_mean", "var": "running_var"}


def _torch_name(name: str, layers: Mapping[str, str]) -> str:
    layer, kind = name.rsplit(".", 1)
    return f"{layers[layer]}.{_KINDS[kind]}"


def _torch_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return PyTorch's shape: [O, I, H, W] of [H, W, I, O], [O, I] of [I, O]."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[len(shape)]
    return tuple(shape[axis] for axis in axes)


def _turned(array: np.ndarray) -> np.ndarray:
    """Return the array in our layout: [H, W, I, O] of [O, I, H, W], [I, O] of [O, I]."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _channels_last(weight: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a dense weight [O, C * H * W] for images flattened with channels last."""
    if weight.shape[1] % (height * width):
        raise ValueError(
            f"a dense weight {weight.shape} does not fit {height} x {width} features: "
            "input_shape is that of the images that the network was made for"
        )
    blocks = weight.reshape(len(weight), -1, height, width)
    return blocks.transpose(0, 2, 3, 1).reshape(weight.shape)


# Our layers -> PyTorch's, by architecture.
def _sequential(**positions: int) -> Callable[[Any], dict[str, str]]:
    """Return the table of a torch.nn.Sequential: a layer's name is its position."""
    return lambda _: {layer: str(position) for layer, position in positions.items()}


def _mlp(model: MLP) -> dict[str, str]:
    """Sequential: flatten, linear, relu, linear, ..."""
    return {f"layers.{i}": str(2 * i + 1) for i in range(len(model.layers))}


_BLOCK = {"norm1": "bn1", "conv1": "conv1", "norm2": "bn2", "conv2": "conv2"}


def _preact_resnet(model: PreActResNet18 | SmallResNet) -> dict[str, str]:
    """kuangliu/pytorch-cifar, models/preact_resnet.py, with locuslab's `bn` at the end."""
    block = _BLOCK | {"shortcut": "shortcut.0"}
    stages = 4 if isinstance(model, PreActResNet18) else 3
    others = {"stem": "conv1", "norm": "bn", "output": "linear"}
    return others | _blocks(len(model.blocks), stages, "layer{}", block)


def _resnet(model: ResNet18) -> dict[str, str]:
    """kuangliu/pytorch-cifar, models/resnet.py, and RobustBench."""
    block = _BLOCK | {"shortcut": "shortcut.0", "shortcut_norm": "shortcut.1"}
    others = {"stem": "conv1", "norm": "bn1", "output": "linear"}
    return others | _blocks(len(model.blocks), 4, "layer{}", block)


def _wide_resnet(model: WideResNet) -> dict[str, str]:
    """yaodongyu/TRADES, models/wideresnet.py, and RobustBench."""
    block = _BLOCK | {"shortcut": "convShortcut"}
    others = {"stem": "conv1", "norm": "bn1", "output": "fc"}
    return others | _blocks(len(model.blocks), 3, "block{}.layer", block)


def _blocks(count: int, stages: int, stage: str, block: dict) -> dict[str, str]:
    """Return the layers of blocks that PyTorch's code counts anew in each stage."""
    per_stage = count // stages
    return {
        f"blocks.{i}.{ours}": f"{stage.format(i // per_stage + 1)}.{i % per_stage}.{name}"
        for i in range(count)
        for ours, name in block.items()
    }


_TRADES = {f"conv{i}": f"feature_extractor.conv{i}" for i in range(1, 5)}
_TRADES |= {"dense1": "classifier.fc1", "dense2": "classifier.fc2"}
_TRADES |= {"output": "classifier.fc3"}

_TABLES: dict[type, Callable[[Any], dict[str, str]]] = {
    Linear: _sequential(output=1),
    MLP: _mlp,
    # Kolter & Madry's tutorial, chapter 3.
    TutorialConvNet: _sequential(
        conv1=0, conv2=2, conv3=4, conv4=6, dense=9, output=11
    ),
    # conv, relu, pool, conv, relu, pool, flatten, linear, relu, linear
    MadryConvNet: _sequential(conv1=0, conv2=3, dense=7, output=9),
    # locuslab/fast_adversarial, MNIST/mnist_net.py.
    SmallConvNet: _sequential(conv1=0, conv2=2, dense=5, output=7),
    # yaodongyu/TRADES, models/small_cnn.py.
    TradesConvNet: lambda _: _TRADES,
    SmallResNet: _preact_resnet,
    PreActResNet18: _preact_resnet,
    ResNet18: _resnet,
    WideResNet: _wide_resnet,
}

# The first dense layer after an image is flattened, and the side of what it then has.
_FLATTENED: dict[type, tuple[str, Callable[[int], int]]] = {
    Linear: ("output", lambda side: side),
    MLP: ("layers.0", lambda side: side),
    TutorialConvNet: ("dense", lambda side: -(-side // 4)),
    MadryConvNet: ("dense", lambda side: -(-side // 4)),
    SmallConvNet: ("dense", lambda side: side // 4),
    TradesConvNet: ("dense1", TradesConvNet.side_after),
}
