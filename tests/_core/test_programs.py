"""Reading the program of a model: what cuts the gradient, and what only looks so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust._core.programs import find_losses, straight_through

X = jax.random.uniform(jax.random.key(0), (3, 4))


def scan_of(f):
    return lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, length=3)[0]


def while_of(f):
    def body(carry):
        step, x = carry
        return step + 1, f(x)

    return lambda x: jax.lax.while_loop(lambda c: c[0] < 3, body, (0, x))[1]


CUT = {
    "round": (lambda x: jnp.round(x), "round"),
    "floor": (lambda x: jnp.floor(3 * x), "floor"),
    "ceil": (lambda x: jnp.ceil(3 * x), "ceil"),
    "sign": (lambda x: jnp.sign(x - 0.5), "sign"),
    "comparison": (lambda x: (x > 0.5).astype(float), "comparison"),
    "step": (lambda x: jnp.where(x > 0.5, 1.0, 0.0), "comparison"),
    "argmax": (lambda x: jax.nn.one_hot(x.argmax(-1), 4), "argmax"),
    "integer": (lambda x: (8 * x).astype(int) / 8, "conversion to integer"),
    "lookup": (
        lambda x: jnp.arange(9.0)[(8 * x).astype(int)],
        "conversion to integer",
    ),
    "stop_gradient": (jax.lax.stop_gradient, "stop_gradient"),
    "jit": (jax.jit(lambda x: jnp.round(x)), "round"),
    "remat": (jax.checkpoint(lambda x: jnp.round(x)), "round"),
    "scan": (scan_of(jnp.round), "round"),
    "while": (while_of(jnp.round), "round"),
    "cond": (
        lambda x: jax.lax.cond(x.sum() > 1, jnp.round, lambda x: 0 * jnp.floor(x), x),
        "round",
    ),
    "vmap": (jax.vmap(jnp.round), "round"),
}
OPEN = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "leaky": lambda x: jnp.where(x > 0, x, 0.1 * x),
    "log_softmax": jax.nn.log_softmax,
    "softmax": jax.nn.softmax,
    "logsumexp": lambda x: x - jax.nn.logsumexp(x, -1, keepdims=True),
    "sort": lambda x: jnp.sort(x),
    "top_k": lambda x: jax.lax.top_k(x, 2)[0],
    "take": lambda x: jnp.take_along_axis(x, x.argmax(-1)[:, None], -1),
    "clip": lambda x: jnp.clip(x, 0.2, 0.8),
    "abs": jnp.abs,
    "attention": lambda x: jax.nn.dot_product_attention(
        *[x[:, :, None, None] * jnp.ones((1, 1, 1, 2))] * 3
    ),
    "scan": scan_of(jnp.tanh),
    "while": while_of(jnp.tanh),
    "constants": lambda x: x * jnp.round(jnp.arange(4.0))[None],
    "standardize": lambda x: jax.nn.standardize(x),
}


@pytest.mark.parametrize("name", CUT)
def test_a_cut_is_found_and_named(name):
    """The gradient is zero, says JAX, and the program says why."""
    function, label = CUT[name]
    assert not jax.jvp(function, (X,), (jnp.ones_like(X),))[1].any()
    reach = find_losses(function, X)
    assert not reach.is_live and label in reach.lost
    # With a second way the gradient arrives, and the cut is still reported.
    both = find_losses(lambda x: function(x) + x, X)
    assert both.is_live and both.lost == reach.lost


@pytest.mark.parametrize("name", OPEN)
def test_sound_operations_pass(name):
    """Comparisons that choose between live values, indices, the maximum of softmax."""
    reach = find_losses(OPEN[name], X)
    assert reach.is_live and reach.lost == frozenset()


def test_models_of_the_library_pass():
    """Networks with derivative rules of their own for convolutions."""
    model = jr.models.create("small_convnet", input_shape=(8, 8, 1), num_classes=10)
    reach = find_losses(jr.models.logits_fn(model), jnp.zeros((2, 8, 8, 1)))
    assert reach.is_live and not reach.lost and "relu" in reach.custom


def test_straight_through_is_an_automatic_bpda():
    """Values stay; the gradient is that of the model without rounding."""

    @jax.jit
    def quantised(x):
        return jax.nn.relu(jnp.round(4 * x) / 4 - 0.3) ** 2

    np.testing.assert_array_equal(straight_through(quantised, X), quantised(X))
    gradient = jax.jit(jax.grad(lambda x: straight_through(quantised, x).sum()))(X)
    expected = 2 * jax.nn.relu(jnp.round(4 * X) / 4 - 0.3)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
