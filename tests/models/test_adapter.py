"""`logits_fn`: one compiled program per architecture, and a true snapshot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxrobust import models

pytestmark = pytest.mark.thin


class UserNet(nnx.Module):
    """A network as a user writes it, with everything that has two modes."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(jax.nn.relu(self.norm(self.dense(x)))))


@pytest.fixture
def x():
    return jax.random.uniform(jax.random.key(0), (5, 4))


def copies(model):
    return jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda p, q: (p == q).all(), a, b)))


def train_step(model, x):
    """One step of gradient descent that also moves the batch statistics."""
    grads = nnx.grad(lambda model: (model(x) ** 2).sum())(model)
    new = jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(model, nnx.Param), grads)
    nnx.update(model, new)


def test_evaluation_mode_whatever_the_model_is_in(x):
    model = UserNet(nnx.Rngs(0))
    f = models.logits_fn(model)
    assert (f(x) == f(x)).all(), "dropout is off"
    # An example's logits do not depend on its neighbours: batch statistics are off.
    np.testing.assert_allclose(f(x)[:1], f(x[:1]), rtol=1e-5, atol=1e-6)
    assert not model.norm.use_running_average, "the model itself stays in training mode"
    assert not model.dropout.deterministic
    model.eval()
    np.testing.assert_allclose(f(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_snapshot(x):
    model = UserNet(nnx.Rngs(0))
    f = models.logits_fn(model)
    before = f(x)
    train_step(model, x)
    assert (f(x) == before).all()
    assert not jnp.allclose(models.logits_fn(model)(x), before)


def test_snapshot_outlives_a_donated_model(x):
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    f = models.logits_fn(model)
    before = f(x)
    for leaf in jax.tree.leaves(nnx.state(model)):
        leaf.delete()  # what donation does to the buffers
    assert (f(x) == before).all()


def test_one_trace_for_all_weights():
    traces = []

    @jax.jit
    def logits(f, x):
        traces.append(1)
        return f(x)

    def create(seed):
        return models.create("mlp", input_shape=(2, 2, 1), num_classes=3, seed=seed)

    x = jnp.ones((2, 2, 2, 1))
    results = [logits(models.logits_fn(create(seed)), x) for seed in (0, 1)]
    assert len(traces) == 1
    assert not jnp.allclose(*results)


@pytest.mark.parametrize("name", models.NAMES)
def test_one_structure_per_architecture(name):
    """Equal and hashable static parts are what makes one trace enough."""

    def structure(seed):
        options = {"input_shape": (8, 8, 3), "num_classes": 3, "seed": seed}
        return nnx.split(nnx.eval_shape(lambda: models.create(name, **options)))[0]

    assert structure(0) == structure(1)
    assert hash(structure(0)) == hash(structure(1))


@pytest.mark.slow
def test_one_trace_for_a_model_in_training(x):
    traces = []

    @jax.jit
    def logits(f, x):
        traces.append(1)
        return f(x)

    model = UserNet(nnx.Rngs(0))
    logits(models.logits_fn(model), x)
    train_step(model, x)
    logits(models.logits_fn(model), x)
    model.eval()
    logits(models.logits_fn(model), x)
    assert len(traces) == 1


def test_ascent_inside_a_training_step(x):
    """The use in adversarial training: scan and grad inside jit, the model training."""
    model = UserNet(nnx.Rngs(0))

    @nnx.jit
    def step(model, x):
        f = models.logits_fn(model)

        def ascend(x_adv, _):
            return x_adv + 0.1 * jax.grad(lambda x: (f(x) ** 2).sum())(x_adv), None

        x_adv, _ = jax.lax.scan(ascend, x, None, length=3)
        train_step(model, x_adv)
        return x_adv

    params, mean = copies(model), np.array(model.norm.mean[...])
    f = models.logits_fn(model)
    x_adv = step(model, x)
    assert ((f(x_adv) ** 2).sum() > (f(x) ** 2).sum()).all()
    assert not same(copies(model), params)
    assert not np.allclose(model.norm.mean[...], mean)
    step(model, x)  # no tracer was left behind in the model


def test_gradients_reach_the_leaves(x):
    f = models.logits_fn(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    grads = jax.grad(lambda f: f(x).sum())(f)
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(grads))
    assert shapes == [(3,), (4, 3)]
    # d/db of the sum of 5 x 3 logits: 5 for each bias.
    assert any((leaf == 5).all() for leaf in jax.tree.leaves(grads))


def test_vmap_over_the_parameters(x):
    fs = [models.logits_fn(nnx.Linear(4, 3, rngs=nnx.Rngs(s))) for s in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *fs)
    got = jax.vmap(lambda f: f(x))(stacked)
    expected = jnp.stack([f(x) for f in fs])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_writes_during_the_call_are_dropped(x):
    class Counter(nnx.Module):
        def __init__(self):
            self.count = nnx.Variable(jnp.zeros(()))

        def __call__(self, x):
            self.count[...] += 1
            return x * self.count[...]

    model = Counter()
    f = models.logits_fn(model)
    assert (f(x) == x).all()
    assert (jax.jit(f)(x) == x).all()
    assert (f(x) == x).all()
    assert model.count[...] == 0


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(x)


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        (UserNet, "create an instance"),
        (Linen(), "model.apply, variables"),
        (lambda x: x, "needs no adapter"),
        ({"kernel": 1}, "jaxrobust.models.create"),
    ],
)
def test_not_a_module(model, advice):
    with pytest.raises(TypeError, match="needs a flax") as error:
        models.logits_fn(model)
    assert advice in str(error.value)


def test_unhashable_static_attribute():
    class Unhashable(nnx.Module):
        def __init__(self):
            self.settings = nnx.static({"scale": 2.0})

        def __call__(self, x):
            return self.settings["scale"] * x

    with pytest.raises(TypeError, match="Unhashable holds a static attribute"):
        models.logits_fn(Unhashable())
