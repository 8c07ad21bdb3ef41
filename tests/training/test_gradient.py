"""AWP and SAM against their formulas in NumPy, and inside of `fit`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrobust as jr
from tests.training import reference as ref

PARAMS = ref.PARAMS | {"b": np.array([0.5, -1.0, 0.25, 2.0])}
IN_JAX = jax.tree.map(jnp.float32, PARAMS)
X, Y = jnp.asarray(ref.X, jnp.float32), jnp.asarray(ref.Y)


def loss_fn(params):
    logits = ref.network(params)(X) + params["b"][None]
    return jr.losses.cross_entropy(logits, Y).mean(), {"logits": logits}


def in_numpy(params):
    return ref.cross_entropy(ref.forward(params, ref.X) + params["b"], ref.Y).mean()


def check(gradient, worst):
    """The loss and the gradient are those at the perturbed parameters."""
    (loss, aux), grads = gradient(loss_fn, IN_JAX)
    np.testing.assert_allclose(loss, in_numpy(worst), rtol=1e-5)
    expected = ref.gradient(in_numpy, worst)
    for name in PARAMS:
        np.testing.assert_allclose(grads[name], expected[name], rtol=1e-4, atol=1e-6)
    logits = ref.forward(worst, ref.X) + worst["b"]
    np.testing.assert_allclose(aux["logits"], logits, rtol=1e-4, atol=1e-5)


def test_awp():
    """Wu et al. 2020 as published: a step of a proxy, scaled to gamma ||w|| per layer."""
    grads, learning_rate, gamma = ref.gradient(in_numpy, PARAMS), 0.01, 0.3
    worst = dict(PARAMS)
    for name in ("w1", "w2"):  # `weight`s with more than one axis
        w, step = PARAMS[name], learning_rate * grads[name]
        diff = np.linalg.norm(w) / (np.linalg.norm(step) + 1e-20) * step
        worst[name] = w + gamma * diff
    check(jr.training.AWP(gamma=gamma), worst)


def test_sam():
    """Foret et al. 2021, eq. (2): one norm of all parameters."""
    grads, rho = ref.gradient(in_numpy, PARAMS), 0.7
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    worst = {name: w + rho * grads[name] / norm for name, w in PARAMS.items()}
    check(jr.training.SAM(rho=rho), worst)


@pytest.mark.parametrize("gradient", [jr.training.AWP(0), jr.training.SAM(0)])
def test_without_a_perturbation(gradient):
    """It is the plain gradient, bit for bit."""
    plain = jax.value_and_grad(loss_fn, has_aux=True)(IN_JAX)
    jax.tree.map(np.testing.assert_array_equal, gradient(loss_fn, IN_JAX), plain)


@pytest.mark.parametrize("gradient", [jr.training.AWP(), jr.training.SAM()])
def test_a_flat_loss(gradient):
    """Where there is no direction nothing moves, and nothing is NaN."""
    (loss, _), grads = gradient(lambda params: (0 * params.sum(), {}), jnp.ones((2, 2)))
    assert loss == 0 and not grads.any()


@pytest.mark.parametrize("gradient", [jr.training.AWP(0.5), jr.training.SAM(5.0)])
def test_tiny_gradients(gradient):
    """Those of a confident model have squares of 0 in float32, and yet a direction."""

    def loss(w):
        return 1e-30 * jnp.sum(w**2), w

    (_, worst), _ = gradient(loss, jnp.array([[6.0, 8.0]]))
    np.testing.assert_allclose(worst, [[9.0, 12.0]], rtol=1e-6)


@pytest.mark.parametrize("gradient", [jr.training.AWP(1.2345), jr.training.SAM(77.0)])
def test_parameters_of_half_precision(gradient):
    """Norm, step and sum are float32's, and what is rounded is their result."""
    w = jax.random.normal(jax.random.key(0), (64, 64), jnp.bfloat16)
    (_, worst), _ = gradient(lambda w: (jnp.sum(w.astype(jnp.float32) ** 2), w), w)
    exact = np.asarray(w, np.float64)  # and the gradient is 2 w
    norm = np.linalg.norm(exact)
    exact *= 1 + (1.2345 if isinstance(gradient, jr.training.AWP) else 77.0 / norm)
    # In float32 an error of 1e-7 turns few of the roundings to 8 bits.
    assert (worst == jnp.asarray(exact, jnp.bfloat16)).mean() > 0.99


@pytest.mark.slow
def test_fit():
    """The step is taken from w, with the gradient at w' and the same attacked inputs."""
    crafted = []

    def attack(logits_fn, x, y, *, threat, key=None):
        jax.debug.callback(lambda: crafted.append(1))
        return x + 0.25

    objective = jr.training.adversarial(attack, ref.FREE)

    def trained(gamma):
        layer = nnx.Linear(5, ref.NUM_CLASSES, rngs=nnx.Rngs(0))
        result = jr.training.fit(
            layer, objective, optax.sgd(0.5), X, Y, num_epochs=1, batch_size=8,
            key=jax.random.key(0), gradient=jr.training.AWP(gamma), progress=False,
        )  # fmt: skip
        jax.effects_barrier()
        return layer, result.last

    layer, model = trained(0.3)
    assert len(crafted) == 1

    def risk(params):
        z = (ref.X + 0.25) @ params["w"] + params["b"]
        return ref.cross_entropy(z, ref.Y).mean()

    w, b = (np.array(v[...], np.float64) for v in (layer.kernel, layer.bias))
    g = ref.gradient(risk, {"w": w, "b": b})["w"]
    worst = {"w": w + 0.3 * np.linalg.norm(w) * g / np.linalg.norm(g), "b": b}
    at_worst = ref.gradient(risk, worst)
    np.testing.assert_allclose(model.kernel[...], w - 0.5 * at_worst["w"], rtol=1e-4)
    np.testing.assert_allclose(model.bias[...], b - 0.5 * at_worst["b"], rtol=1e-4)


@pytest.mark.parametrize("make", [jr.training.AWP, jr.training.SAM])
@pytest.mark.parametrize(
    "value", [-0.1, float("nan"), float("inf"), None, np.float32(-1), True, [0.1]]
)
def test_misuse(make, value):
    with pytest.raises(ValueError, match="at least 0"):
        make(value)
