"""The networks have the published sizes, start and train as described."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrobust import models

pytestmark = pytest.mark.thin

MNIST, CIFAR, DIGITS = (28, 28, 1), (32, 32, 3), (8, 8, 1)

# Options that make the networks small enough to be run here.
TINY = {
    "small_resnet": {"width": 2},
    "resnet18": {"width": 2},
    "preact_resnet18": {"width": 2},
    "wide_resnet28_10": {"depth": 10, "width": 1},
    "wide_resnet34_10": {"depth": 10, "width": 1},
}

RESIDUAL = ("small_resnet", "resnet18", "preact_resnet18", "wide_resnet28_10")


def tiny(name, input_shape=DIGITS, **options):
    options = {**TINY.get(name, {}), **options}
    return models.create(name, input_shape=input_shape, num_classes=5, **options)


def filled(name, input_shape=DIGITS, seed=0, **options):
    """Makes a tiny model with weights from numpy: JAX compiles a program per shape."""
    rng = np.random.default_rng(seed)
    abstract = nnx.eval_shape(lambda: tiny(name, input_shape, **options))
    graphdef, state = nnx.split(abstract)

    def fill(leaf):
        # Positive, since some are variances.
        return jnp.asarray(rng.uniform(0.01, 0.2, leaf.shape), leaf.dtype)

    return nnx.merge(graphdef, jax.tree.map(fill, state))


def num_params(name, input_shape, num_classes=10, **options):
    """Counts the trained numbers without making them."""
    model = nnx.eval_shape(
        lambda: models.create(
            name, input_shape=input_shape, num_classes=num_classes, **options
        )
    )
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    return sum(math.prod(leaf.shape) for leaf in leaves)


def test_number_of_parameters_of_the_small_networks():
    assert num_params("linear", MNIST) == 784 * 10 + 10
    mlp = 784 * 200 + 200 + 200 * 100 + 100 + 100 * 10 + 10
    assert num_params("mlp", MNIST) == mlp
    convs = 9 * 32 + 32 + 9 * 32 * 32 + 32 + 9 * 32 * 64 + 64 + 9 * 64 * 64 + 64
    tutorial = convs + 3136 * 100 + 100 + 100 * 10 + 10
    assert num_params("tutorial_convnet", MNIST) == tutorial
    convs = 25 * 32 + 32 + 25 * 32 * 64 + 64
    madry = convs + 3136 * 1024 + 1024 + 1024 * 10 + 10
    assert num_params("madry_convnet", MNIST) == madry == 3_274_634
    convs = 16 * 16 + 16 + 16 * 16 * 32 + 32
    assert num_params("small_convnet", MNIST) == convs + 1568 * 100 + 100 + 1010
    convs = 9 * 32 + 32 + 9 * 32 * 32 + 32 + 9 * 32 * 64 + 64 + 9 * 64 * 64 + 64
    trades = convs + 1024 * 200 + 200 + 200 * 200 + 200 + 2010
    assert num_params("trades_convnet", MNIST) == trades == 312_202


def test_number_of_parameters_of_the_residual_networks():
    # Without the final norm: 11,171,146, the number printed by kuangliu/pytorch-cifar;
    # the norm adds a scale and a bias for each of 512 channels.
    count = num_params("preact_resnet18", CIFAR, final_norm=False)
    assert count == 11_171_146
    assert num_params("preact_resnet18", CIFAR) == 11_171_146 + 2 * 512
    # kuangliu/pytorch-cifar, ResNet-18: 11,173,962.
    assert num_params("resnet18", CIFAR) == 11_173_962
    # Zagoruyko & Komodakis, table 4: 36.5 million; Madry's and TRADES' WRN-34-10 has
    # 46.2 million.
    assert num_params("wide_resnet28_10", CIFAR) == 36_479_194
    assert num_params("wide_resnet34_10", CIFAR) == 46_160_474
    # Stem, three blocks (the first without a convolution in its shortcut), norm, dense.
    stem = 9 * 3 * 32
    blocks = 2 * 9 * 32**2 + 4 * 32
    for n in (32, 64):
        blocks += 9 * (2 * n * n + 4 * n * n) + 2 * n * n + 2 * (n + 2 * n)
    assert num_params("small_resnet", CIFAR) == stem + blocks + 2 * 128 + 1290


@pytest.mark.parametrize("name", models.NAMES)
def test_logits_on_small_images(name):
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(3, *DIGITS)), jnp.float32)
    logits = nnx.jit(lambda model, x: model(x))(filled(name), x)
    assert logits.shape == (3, 5)
    assert logits.dtype == jnp.float32
    assert jnp.isfinite(logits).all()
    # Each image gives its own logits: nothing has collapsed to a constant.
    assert float(jnp.ptp(logits, axis=0).max()) > 1e-6


@pytest.mark.parametrize("name", models.NAMES)
@pytest.mark.parametrize("input_shape", [(7, 9, 2), (32, 32, 3)])
def test_any_image_size(name, input_shape):
    x = jnp.zeros((2, *input_shape))
    out = jax.eval_shape(lambda x: tiny(name, input_shape)(x), x)
    assert out.shape == (2, 5)


@pytest.mark.parametrize("name", [*RESIDUAL, "small_convnet"])
def test_an_activation_that_is_none(name):
    """Refused when the network is made, with the names that there are."""
    with pytest.raises(ValueError, match=r"'gelu'.*relu, silu"):
        nnx.eval_shape(lambda: tiny(name, activation="gelu"))


def test_the_seed_decides_the_weights():
    a, b, c = (tiny("mlp", seed=seed) for seed in (0, 0, 1))
    same = jax.tree.map(lambda p, q: (p == q).all(), nnx.state(a), nnx.state(b))
    assert all(jax.tree.leaves(same))
    assert not jnp.allclose(a.layers[0].kernel[...], c.layers[0].kernel[...])


@pytest.mark.parametrize(
    "name", ["mlp", pytest.param("tutorial_convnet", marks=pytest.mark.slow)]
)
def test_initial_weights_are_those_of_pytorch(name):
    # U(+-1/sqrt(fan_in)) for weights and biases.
    for _, layer in nnx.iter_graph(tiny(name, MNIST)):
        if isinstance(layer, (nnx.Linear, nnx.Conv)):
            kernel = layer.kernel[...]
            bound = math.prod(kernel.shape[:-1]) ** -0.5
            for weights in (kernel, layer.bias[...]):
                assert 0.5 * bound < float(abs(weights).max()) <= bound
            # 288 weights or more: five standard errors of the deviation are below 20%.
            assert float(kernel.std()) == pytest.approx(bound / 3**0.5, rel=0.2)


def test_initial_weights_of_madry():
    model = tiny("madry_convnet", MNIST)
    kernel = model.dense.kernel[...]
    assert float(abs(kernel).max()) <= 0.2
    # A unit normal cut at two deviations has deviation 0.8796.
    assert float(kernel.std()) == pytest.approx(0.08796, rel=0.01)
    assert (model.dense.bias[...] == 0.1).all()


def test_batch_statistics_change_only_in_training():
    x = jax.random.uniform(jax.random.key(0), (4, *DIGITS))
    model = filled("wide_resnet28_10")

    @nnx.jit
    def call(model, x):
        return model(x)

    def statistics():
        leaves = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
        return np.concatenate([np.ravel(leaf) for leaf in leaves])

    before, old = statistics(), np.array(model.blocks[0].norm1.mean[...])
    call(nnx.view(model, use_running_average=True), x)
    jax.jit(models.logits_fn(model))(x)
    assert (statistics() == before).all()
    call(model, x)
    assert (statistics() != before).any()
    # PyTorch's momentum: nine tenths of the old mean, one of the batch's.
    mean = model.stem(x).mean((0, 1, 2))
    np.testing.assert_allclose(
        model.blocks[0].norm1.mean[...], 0.9 * old + 0.1 * mean, rtol=1e-5, atol=1e-7
    )


def test_normalisation_is_inside_the_model():
    statistics = models.Normalization(mean=(0.5,), std=(0.25,))
    plain = filled("mlp")
    normalised = filled("mlp", normalization=statistics)
    x = jax.random.uniform(jax.random.key(0), (3, *DIGITS))
    assert (normalised(x) == plain((x - 0.5) / 0.25)).all()


def test_residual_networks_know_the_statistics_of_cifar():
    for name in RESIDUAL:
        assert (
            nnx.eval_shape(lambda name=name: tiny(name, CIFAR)).normalization
            == models.CIFAR10
        )
        assert nnx.eval_shape(lambda name=name: tiny(name)).normalization is None


@pytest.mark.parametrize("name", RESIDUAL)
def test_the_activation_is_an_argument(name):
    """It is applied everywhere: without bends the logits are smooth in the pixels."""
    x = np.random.default_rng(0).uniform(size=DIGITS).astype(np.float32)
    model = models.logits_fn(filled(name, activation="silu"))
    relu = models.logits_fn(filled(name, activation="relu"))
    program = str(jax.make_jaxpr(lambda f, x: f(x[None]))(model, x))
    assert "logistic" in program and "max" not in program
    assert "logistic" not in str(jax.make_jaxpr(lambda f, x: f(x[None]))(relu, x))


def test_statistics_by_their_names():
    """As JSON holds them, in the metadata of a checkpoint."""
    given = {"mean": [0.5], "std": [0.25]}
    model = nnx.eval_shape(lambda: tiny("mlp", normalization=given))
    assert model.normalization == models.Normalization((0.5,), (0.25,))


def test_unknown_name():
    with pytest.raises(ValueError, match=r"did you mean 'madry_convnet'\?"):
        models.create("madry_convet", input_shape=MNIST, num_classes=10)
    with pytest.raises(ValueError) as error:
        models.create("transformer", input_shape=MNIST, num_classes=10)
    assert all(name in str(error.value) for name in models.NAMES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny("mlp", (784,)), r"\(height, width, channels\)"),
        (lambda: tiny("small_convnet", (3, 8, 1)), "at least 4 x 4"),
        (lambda: tiny("trades_convnet", (28, 15, 1)), "at least 16 x 16"),
        (lambda: tiny("wide_resnet28_10", depth=20), r"6 n \+ 4"),
        (lambda: models.Normalization((0.5,), (0.1, 0.2)), "one number per channel"),
        (lambda: models.Normalization((0.5,), (0.0,)), "must be positive"),
        (lambda: models.CIFAR10(jnp.zeros((1, 3, 32, 32))), "32 channels"),
    ],
)
def test_misuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()
