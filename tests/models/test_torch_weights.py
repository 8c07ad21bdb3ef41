"""Weights of PyTorch: names, layouts, statistics; equal logits where torch is installed."""

import json
import pathlib
import re
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrobust import models
from jaxrobust.models import arrays, torch_weights

SHAPE = (8, 12, 3)


def torch_state(network, seed=0):
    """Return random arrays by the names and in the layouts of PyTorch."""
    rng = np.random.default_rng(seed)
    layers = torch_weights._TABLES[type(network)](network)
    state = {}
    for name, leaf in arrays.named(network).items():
        theirs = torch_weights._torch_name(name, layers)
        size = torch_weights._torch_shape(leaf.shape)
        state[theirs] = rng.uniform(0.1, 0.3, size).astype(np.float32)
    return state


def abstract(name, shape, **options):
    return nnx.eval_shape(
        lambda: models.create(name, input_shape=shape, num_classes=5, **options)
    )


def imported(state, name, shape=SHAPE, **options):
    return models.from_torch(state, name, input_shape=shape, num_classes=5, **options)


# The first block whose shortcut is a convolution; PyTorch's name for each of its layers.
BLOCKS = {
    "preact_resnet18": ("blocks.2", "layer2.0", {"shortcut": "shortcut.0"}),
    "resnet18": (
        "blocks.2",
        "layer2.0",
        {"shortcut": "shortcut.0", "shortcut_norm": "shortcut.1"},
    ),
    "wide_resnet28_10": ("blocks.1", "block2.layer.0", {"shortcut": "convShortcut"}),
}
TINY = {"preact_resnet18": {"width": 2}, "resnet18": {"width": 2}}
TINY |= {"wide_resnet28_10": {"depth": 10, "width": 1}, "small_resnet": {"width": 2}}
TINY |= {"wide_resnet34_10": {"depth": 16, "width": 1}}


@pytest.mark.thin
@pytest.mark.parametrize("name", models.NAMES)
def test_every_network_has_a_table(name):
    """All arrays are filled, each from an array of its own."""
    options = TINY.get(name, {})
    state = torch_state(abstract(name, SHAPE, **options))
    filled = arrays.to_arrays(imported(state, name, **options))
    assert len(filled) == len(state)
    assert sum(a.sum() for a in filled.values()) == pytest.approx(
        sum(a.sum() for a in state.values()), rel=1e-5
    )


@pytest.mark.parametrize("name", BLOCKS)
def test_layouts_and_names_of_a_block(name):
    """Kernels [O, I, H, W] become [H, W, I, O]; running statistics are the statistics."""
    options = TINY[name]
    state = torch_state(abstract(name, SHAPE, **options))
    filled = arrays.to_arrays(imported(state, name, **options))
    ours, theirs, shortcut = BLOCKS[name]
    layers = {"conv1": "conv1", "norm1": "bn1", "conv2": "conv2", "norm2": "bn2"}
    for layer, other in (layers | shortcut).items():
        if "norm" not in layer:
            expected = np.einsum("oihw->hwio", state[f"{theirs}.{other}.weight"])
            np.testing.assert_array_equal(filled[f"{ours}.{layer}.kernel"], expected)
            continue
        for kind, name in (("scale", "weight"), ("bias", "bias")):
            expected = state[f"{theirs}.{other}.{name}"]
            np.testing.assert_array_equal(filled[f"{ours}.{layer}.{kind}"], expected)
        for kind, name in (("mean", "running_mean"), ("var", "running_var")):
            expected = state[f"{theirs}.{other}.{name}"]
            np.testing.assert_array_equal(filled[f"{ours}.{layer}.{kind}"], expected)


def test_small_convnet_gives_pytorch_s_logits():
    """Computed with channels first, as PyTorch does; an image that is not square."""
    state = torch_state(abstract("small_convnet", SHAPE))
    state = {name: array - 0.2 for name, array in state.items()}
    x = np.random.default_rng(1).uniform(size=(2, 3, 8, 12)).astype(np.float32)

    @jax.jit
    def expected(x):
        for name in "02":
            x = jax.lax.conv_general_dilated(
                x, state[f"{name}.weight"], (2, 2), ((1, 1), (1, 1))
            )
            x = jax.nn.relu(x + state[f"{name}.bias"].reshape(1, -1, 1, 1))
        x = x.reshape(2, -1) @ state["5.weight"].T + state["5.bias"][None]
        return jax.nn.relu(x) @ state["7.weight"].T + state["7.bias"][None]

    model = imported(state, "small_convnet")
    # Two programs for the same few hundred products per logit.
    np.testing.assert_allclose(
        nnx.jit(model)(x.transpose(0, 2, 3, 1)), expected(x), rtol=1e-4, atol=1e-5
    )


def test_trades_convnet_gives_pytorch_s_logits():
    """Computed with channels first, as PyTorch does; an image that is not square."""
    shape = (16, 20, 3)
    state = torch_state(abstract("trades_convnet", shape))
    x = np.random.default_rng(1).uniform(size=(2, 3, 16, 20)).astype(np.float32)

    @jax.jit
    def expected(x):
        for i in range(1, 5):
            name = f"feature_extractor.conv{i}"
            x = jax.lax.conv_general_dilated(
                x, state[f"{name}.weight"], (1, 1), "VALID"
            )
            x = jax.nn.relu(x + state[f"{name}.bias"].reshape(1, -1, 1, 1))
            if i % 2 == 0:
                b, c, h, w = x.shape
                x = x.reshape(b, c, h // 2, 2, w // 2, 2).max((3, 5))
        x = x.reshape(2, -1)
        for i in range(1, 4):
            x = jax.nn.relu(x) if i > 1 else x
            name = f"classifier.fc{i}"
            x = x @ state[f"{name}.weight"].T + state[f"{name}.bias"][None]
        return x

    model = imported(state, "trades_convnet", shape)
    # Two programs for the same few hundred products per logit.
    np.testing.assert_allclose(
        nnx.jit(model)(x.transpose(0, 2, 3, 1)), expected(x), rtol=1e-4, atol=1e-5
    )


def test_what_does_not_matter():
    """Prefixes, counters, TRADES' unused blocks, half precision."""
    options = TINY["wide_resnet28_10"]
    state = torch_state(abstract("wide_resnet28_10", SHAPE, **options))
    plain = arrays.to_arrays(imported(state, "wide_resnet28_10", **options))
    dressed = {
        f"module.model.{name}": array.astype(jnp.bfloat16)
        for name, array in state.items()
    }
    dressed["module.model.bn1.num_batches_tracked"] = np.array(7)
    dressed["module.model.sub_block1.layer.0.conv1.weight"] = np.zeros((2, 2, 3, 3))
    other = arrays.to_arrays(imported(dressed, "wide_resnet28_10", **options))
    for name, array in plain.items():
        assert other[name].dtype == np.float32
        # bfloat16 has 8 bits.
        np.testing.assert_allclose(other[name], array, rtol=2**-8)


@pytest.mark.parametrize(
    "names", [("mean", "std"), ("module.mu", "module.sigma"), ("0.mean", "0.std")]
)
def test_channel_statistics_in_the_state(names):
    """They become the model's; half of the networks keep them as [1, C, 1, 1]."""
    mean, std = (0.5, 0.25, 0.125), (0.5, 0.5, 0.25)
    state = torch_state(abstract("mlp", SHAPE))
    state = {f"module.{name}": array for name, array in state.items()}
    for name, values in zip(names, (mean, std), strict=True):
        state[name] = np.array(values, np.float32).reshape(1, 3, 1, 1)
    assert imported(state, "mlp").normalization == models.Normalization(mean, std)
    with pytest.raises(ValueError, match="leave normalization out"):
        imported(state, "mlp", normalization=models.CIFAR10)


def test_without_statistics_the_pixels_are_raw():
    """Also where `create` would take those of CIFAR-10; else the ones that are given."""
    state = torch_state(abstract("resnet18", SHAPE, width=2))
    assert imported(state, "resnet18", width=2).normalization is None
    given = imported(state, "resnet18", width=2, normalization=models.CIFAR10)
    assert given.normalization == models.CIFAR10


def test_a_network_is_filled_as_it_is():
    """The one given is not changed; its normalisation stays."""
    network = models.create("mlp", input_shape=SHAPE, num_classes=5, hidden_sizes=(4,))
    before = arrays.to_arrays(network)
    state = torch_state(network)
    state = {name.replace("3.", "last."): array for name, array in state.items()}
    filled = models.from_torch(
        state, network, input_shape=SHAPE, names={"layers.1": "last"}
    )
    after = arrays.to_arrays(network)
    assert all((after[name] == before[name]).all() for name in before)
    expected = state["last.weight"].T
    np.testing.assert_array_equal(arrays.to_arrays(filled)["layers.1.kernel"], expected)


def test_another_network_is_refused():
    """What is missing, surplus and of another shape is named."""
    state = torch_state(abstract("preact_resnet18", SHAPE, width=2))
    state["linear.weight"] = state["linear.weight"][:3]
    state["extra"] = np.zeros(4)
    del state["layer3.1.bn2.running_var"]
    with pytest.raises(ValueError) as error:
        imported(state, "preact_resnet18", width=2, source="w.npz")
    assert str(error.value) == (
        "w.npz does not fit the network: missing: layer3.1.bn2.running_var (8,); "
        "surplus: extra (4,); other shapes: linear.weight is (3, 16), needed (5, 16)"
    )
    with pytest.raises(ValueError, match="and 2 more"):
        imported({}, "small_convnet")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nnx.Linear(4, 2, rngs=nnx.Rngs(0)), {}, "model is a Linear: give a name"),
        (models.Linear((2, 2, 1), 3, rngs=nnx.Rngs(0)), {"num_classes": 3}, "num_cl"),
        ("mlp", {}, "num_classes is needed"),
    ],
)
def test_misuse(model, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        models.from_torch({}, model, input_shape=(2, 2, 1), **options)


# --- files ---------------------------------------------------------------------------


def safetensors(path, tensors):
    """Write a file as its specification says."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (dtype, array) in tensors.items():
        end = len(data) + array.nbytes
        shape = list(array.shape)
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), end],
        }
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_safetensors(tmp_path):
    """Each type of floats, and a counter, which is an integer without axes."""
    values = np.arange(6).reshape(2, 3)
    tensors = {
        "a": ("F32", values.astype(np.float32)),
        "b": ("BF16", values.astype(jnp.bfloat16)),
        "c": ("F16", values.astype(np.float16)),
        "n": ("I64", np.array(7)),
    }
    read = models.read_state_dict(safetensors(tmp_path / "x.safetensors", tensors))
    assert read.keys() == tensors.keys() and read["n"] == 7
    for name in "abc":
        np.testing.assert_array_equal(read[name].astype(np.float32), values)


def test_files_that_are_refused(tmp_path):
    """A pickle, also inside of an npz; a damaged file; none."""
    for name in ("x.pt", "x.pth", "x.pth.tar"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=r"weights_only=True\)\n    numpy.savez"):
            models.read_state_dict(tmp_path / name)
    np.savez(tmp_path / "x.npz", a=np.array([{}], object))
    with pytest.raises(ValueError, match="allow_pickle"):
        models.read_state_dict(tmp_path / "x.npz")
    full = safetensors(tmp_path / "full.safetensors", {"a": ("F32", np.zeros(3, "f4"))})
    for content in (b"", b"12", full.read_bytes()[:-1]):
        (tmp_path / "cut.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="or damaged"):
            models.read_state_dict(tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError):
        models.read_state_dict(tmp_path / "absent.npz")
    (tmp_path / "x.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"neither in \.npz nor"):
        models.read_state_dict(tmp_path / "x.h5")


PAGE = pathlib.Path(__file__).parents[2] / "docs" / "weights.md"


def test_the_example_of_the_page_runs():
    """docs/weights.md, as it stands there."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert "assert " in code
    exec(compile(code, str(PAGE), "exec"), {"__name__": "example"})


# --- against torch -------------------------------------------------------------------


def twin(name):
    """Return the network as its authors write it, at small width, with random state."""
    torch = pytest.importorskip("torch", reason="compares with torch")
    from torch import nn
    from torch.nn import functional

    def conv(channels, features, size=3, stride=1):
        options = {"stride": stride, "padding": size // 2, "bias": False}
        return nn.Conv2d(channels, features, size, **options)

    class PreActBlock(nn.Module):
        def __init__(self, channels, features, stride):
            super().__init__()
            self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(features)
            self.conv1 = conv(channels, features, stride=stride)
            self.conv2 = conv(features, features)
            if stride != 1 or channels != features:
                self.shortcut = nn.Sequential(conv(channels, features, 1, stride))

        def forward(self, x):
            out = functional.relu(self.bn1(x))
            seen = x if name == "raw shortcut" else out
            skip = self.shortcut(seen) if hasattr(self, "shortcut") else x
            return self.conv2(functional.relu(self.bn2(self.conv1(out)))) + skip

    class Block(nn.Module):
        def __init__(self, channels, features, stride):
            super().__init__()
            self.conv1 = conv(channels, features, stride=stride)
            self.conv2 = conv(features, features)
            self.bn1, self.bn2 = nn.BatchNorm2d(features), nn.BatchNorm2d(features)
            self.shortcut = nn.Sequential()
            if stride != 1 or channels != features:
                norm = nn.BatchNorm2d(features)
                self.shortcut = nn.Sequential(conv(channels, features, 1, stride), norm)

        def forward(self, x):
            out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
            return functional.relu(out + self.shortcut(x))

    class WideBlock(nn.Module):
        def __init__(self, channels, features, stride):
            super().__init__()
            self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(features)
            self.conv1 = conv(channels, features, stride=stride)
            self.conv2 = conv(features, features)
            self.convShortcut = None
            if channels != features:
                self.convShortcut = conv(channels, features, 1, stride)

        def forward(self, x):
            out = functional.relu(self.bn1(x))
            skip = x if self.convShortcut is None else self.convShortcut(out)
            return skip + self.conv2(functional.relu(self.bn2(self.conv1(out))))

    def stage(block, channels, features, stride):
        first = block(channels, features, stride)
        return nn.Sequential(first, block(features, features, 1))

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mu", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
            self.register_buffer(
                "sigma", torch.tensor([0.2, 0.3, 0.2]).view(1, 3, 1, 1)
            )
            self.conv1 = conv(3, 4)
            block = Block if name == "resnet18" else PreActBlock
            if name == "resnet18":
                self.bn1 = nn.BatchNorm2d(4)
            elif name == "preact_resnet18":
                self.bn = nn.BatchNorm2d(32)
            self.layer1 = stage(block, 4, 4, 1)
            self.layer2 = stage(block, 4, 8, 2)
            self.layer3 = stage(block, 8, 16, 2)
            self.layer4 = stage(block, 16, 32, 2)
            self.linear = nn.Linear(32, 5)

        def forward(self, x):
            x = self.conv1((x - self.mu) / self.sigma)
            if name == "resnet18":
                x = functional.relu(self.bn1(x))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            if name == "preact_resnet18":
                x = functional.relu(self.bn(x))
            return self.linear(x.mean((2, 3)))

    class Stage(nn.Module):
        def __init__(self, channels, features, stride):
            super().__init__()
            self.layer = stage(WideBlock, channels, features, stride)

        def forward(self, x):
            return self.layer(x)

    class WideResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = conv(3, 16)
            self.block1 = Stage(16, 32, 1)
            self.block2 = Stage(32, 64, 2)
            self.block3 = Stage(64, 128, 2)
            self.bn1 = nn.BatchNorm2d(128)
            self.fc = nn.Linear(128, 5)

        def forward(self, x):
            x = self.block3(self.block2(self.block1(self.conv1(x))))
            return self.fc(functional.relu(self.bn1(x)).mean((2, 3)))

    torch.manual_seed(0)
    network = (WideResNet() if name == "wide_resnet28_10" else ResNet()).eval()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)  # keeps the signal of the image
        if isinstance(layer, nn.BatchNorm2d):
            for array, low, high in (
                (layer.running_mean, -0.5, 0.5),
                (layer.running_var, 0.5, 2.0),
                (layer.weight.data, 0.5, 1.5),
                (layer.bias.data, -0.5, 0.5),
            ):
                array.uniform_(low, high)
    return torch, network


@pytest.mark.parametrize(
    ("name", "model", "options"),
    [
        ("preact_resnet18", "preact_resnet18", {"width": 4}),
        pytest.param(
            "raw shortcut",
            "preact_resnet18",
            {"width": 4, "final_norm": False, "activated_shortcut": False},
            marks=pytest.mark.slow,
        ),
        pytest.param("resnet18", "resnet18", {"width": 4}, marks=pytest.mark.slow),
        pytest.param(
            "wide_resnet28_10",
            "wide_resnet28_10",
            {"depth": 16, "width": 2},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_logits_are_those_of_torch(name, model, options):
    torch, network = twin(name)
    x = torch.rand(4, 3, 16, 24) * torch.tensor([1, 0.5, 0.2, 0]).view(4, 1, 1, 1)
    with torch.no_grad():
        expected = network(x).numpy()
    state = torch.nn.DataParallel(network).state_dict()
    ours = imported(state, model, (16, 24, 3), **options)
    logits = jax.jit(models.logits_fn(ours))(jnp.asarray(x.permute(0, 2, 3, 1).numpy()))
    assert np.ptp(expected, axis=0).max() > 0.1  # the images do not look the same to it
    # Sums of some hundred products, in another order, through 17 layers.
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
