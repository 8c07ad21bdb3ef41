"""GradAlign: value and second derivative by differences alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrobust as jr
from jaxrobust.training.gradalign import _cosine
from tests.training import reference as ref

KEY = jax.random.key(5)


def slopes(params, x):
    """The input gradients of the cross-entropy, by the chain rule in NumPy."""
    hidden = np.tanh(x @ params["w1"])
    p = np.exp(ref.log_softmax(hidden @ params["w2"]))
    p[np.arange(len(ref.Y)), ref.Y] -= 1
    return (p @ params["w2"].T * (1 - hidden**2)) @ params["w1"].T


def test_value_and_update():
    """Andriushchenko & Flammarion 2020, eq. (5), at the point that was drawn."""
    objective = jr.training.gradalign(ref.shifted, ref.FREE, weight=2.0)
    x, y = jnp.asarray(ref.X, jnp.float32), jnp.asarray(ref.Y)
    model = ref.network(ref.PARAMS)
    x_adv, noisy = objective.inner(model, x, y, key=KEY, step=None)
    np.testing.assert_allclose(x_adv, ref.X_ADV, rtol=1e-6)
    noise = np.array(noisy, np.float64) - ref.X
    assert (abs(noise) <= 0.3 + 1e-6).all() and noise.std() > 0.3 / 2  # uniform: 0.17
    assert len(np.unique(noise)) == noise.size

    def formula(params):
        a, b = (slopes(params, z) for z in (ref.X, ref.X + noise))
        norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        cosine = (a * b).sum(-1) / norms
        z = ref.forward(params, ref.X_ADV)
        return ref.cross_entropy(z, ref.Y).mean() + 2.0 * (1 - cosine.mean())

    metrics = ref.check(objective, formula, key=KEY)
    assert metrics["cosine"] < 0.99


@pytest.mark.slow
def test_gradients_that_are_zero():
    """A constant model has no direction: no NaN, and nothing to align."""
    objective = jr.training.gradalign(ref.shifted, ref.FREE)

    def loss(w):
        model = lambda x: jnp.tile(w, (len(x), 1)) + 0 * x[:, :4]  # noqa: E731
        x, y = jnp.asarray(ref.X, jnp.float32), jnp.asarray(ref.Y)
        return objective(model, model, x, y, key=KEY)

    (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(jnp.zeros(4))
    assert metrics["cosine"] == 1 and jnp.isfinite(grads).all()


@pytest.mark.slow
def test_evaluations_in_a_step():
    """Three of the attack; two input gradients and the loss."""
    objective = jr.training.gradalign(jr.PGD(num_steps=3, keep_best=False), ref.FREE)
    assert ref.count_calls(objective, key=KEY) == (3, 3)


@pytest.mark.slow
def test_batch_norm_and_convolutions():
    """A module that counts statistics under `jax.grad`: those of x_adv remain."""

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.convolution = nnx.Conv(1, 3, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(3, momentum=0.5, rngs=rngs)
            self.linear = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x):
            return self.linear(jnp.tanh(self.norm(self.convolution(x))).mean((1, 2)))

    x = jax.random.uniform(KEY, (6, 5, 5, 1))
    threat = jr.Linf(0.1)

    def brighter(logits_fn, x, y, *, threat, key=None):
        return jnp.clip(x + 0.1, 0, 1)

    network = Network(nnx.Rngs(0))
    result = jr.training.fit(
        network, jr.training.gradalign(brighter, threat), optax.sgd(0.1), x,
        np.arange(6) % 3, num_epochs=1, batch_size=6, key=KEY, progress=False,
    )  # fmt: skip
    mean = network.convolution(jnp.clip(x + 0.1, 0, 1)).mean((0, 1, 2))
    np.testing.assert_allclose(result.last.norm.mean[...], mean / 2, atol=1e-6)
    assert result.history[0]["train_cosine"] < 1


def test_cosine_in_half_precision():
    """The gradients have the type of x; products of thousands of them are summed wider."""
    a, b = jax.random.normal(KEY, (2, 3, 2000), jnp.bfloat16)
    wide = [np.asarray(v, np.float64) for v in (a, b)]
    norms = np.linalg.norm(wide[0], axis=-1) * np.linalg.norm(wide[1], axis=-1)
    expected = (wide[0] * wide[1]).sum(-1) / norms
    np.testing.assert_allclose(_cosine(a, b), expected, atol=1e-6)  # float32


def test_misuse():
    objective = jr.training.gradalign(jr.FGSM(), ref.FREE)
    with pytest.raises(ValueError, match="needs a key"):
        ref.run(objective)
    with pytest.raises(ValueError, match="weight=-1"):
        jr.training.gradalign(jr.FGSM(), ref.FREE, weight=-1)
