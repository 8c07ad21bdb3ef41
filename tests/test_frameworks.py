"""One small network in every framework: equal weights give equal attacks."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jaxrobust as jr

pytestmark = pytest.mark.thin

X = jax.random.uniform(jax.random.key(0), (4, 5))
Y = jnp.array([0, 1, 2, 0])
K1, K2 = jax.random.split(jax.random.key(1))
W1, W2 = jax.random.normal(K1, (5, 6)), jax.random.normal(K2, (6, 3))
B1, B2 = jnp.linspace(-1, 1, 6), jnp.linspace(0, 1, 3)


def bare():
    return lambda x: jnp.tanh(x @ W1 + B1[None]) @ W2 + B2[None]


class NNXModel(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(5, 6, rngs=nnx.Rngs(0))
        self.second = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
        for layer, w, b in ((self.first, W1, B1), (self.second, W2, B2)):
            layer.kernel[...], layer.bias[...] = w, b

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


def nnx_closure():
    model = NNXModel()
    return lambda x: model(x)


def linen_partial():
    model = linen.Sequential([linen.Dense(6), jnp.tanh, linen.Dense(3)])
    params = {
        "layers_0": {"kernel": W1, "bias": B1},
        "layers_2": {"kernel": W2, "bias": B2},
    }
    return jax.tree_util.Partial(model.apply, {"params": params})


def equinox_mlp():
    model = eqx.nn.MLP(5, 3, 6, 1, activation=jnp.tanh, key=jax.random.key(0))
    return eqx.tree_at(
        lambda m: [getattr(m.layers[i], n) for i in (0, 1) for n in ("weight", "bias")],
        model,
        [W1.T, B1, W2.T, B2],
    )


def equinox_vmap():
    return jax.vmap(equinox_mlp())


class Batched(eqx.Module):
    """A module whose leaves are arrays and, as is usual in Equinox, functions."""

    inner: eqx.nn.MLP

    def __call__(self, x):
        return jax.vmap(self.inner)(x)


def equinox_module():
    return Batched(equinox_mlp())


def haiku_partial():
    def net(x):
        x = jnp.tanh(hk.Linear(6, name="first")(x))
        return hk.Linear(3, name="second")(x)

    params = {"first": {"w": W1, "b": B1}, "second": {"w": W2, "b": B2}}
    apply = hk.without_apply_rng(hk.transform(net)).apply
    return jax.tree_util.Partial(apply, params)


MODELS = [NNXModel, nnx_closure, linen_partial, equinox_vmap, equinox_module]


@pytest.mark.parametrize(
    "make",
    [
        equinox_vmap,
        NNXModel,
        *[pytest.param(m, marks=pytest.mark.slow) for m in MODELS[1:3] + MODELS[4:]],
        pytest.param(haiku_partial, marks=pytest.mark.slow),
    ],
)
def test_frameworks_agree(make):
    """Law 5: PGD and `evaluate` see the function, not the framework."""
    attack, threat = jr.PGD(num_steps=4), jr.Linf(0.2)
    key = jax.random.key(2)
    with jax.numpy_rank_promotion("allow"):  # of the frameworks
        expected = attack(bare(), X, Y, threat=threat, key=key)
        found = attack(make(), X, Y, threat=threat, key=key)
        options = dict(attack=attack, threat=threat, key=key)
        report = jr.evaluate(make(), X, Y, stop_early=False, **options)
        early = jr.evaluate(make(), X, Y, **options)
    # The sums of a layer may be ordered differently: rounding.
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(report.x_adv, expected, atol=1e-6)
    np.testing.assert_array_equal(early.is_robust, report.is_robust)
