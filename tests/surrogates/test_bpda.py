"""BPDA: the value of one function, the derivative of another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr

X = jax.random.uniform(jax.random.key(0), (3, 4))


@jr.bpda
def quantise(x):
    return jnp.round(7 * x) / 7


def test_value_is_exact_and_derivative_is_that_of_backward():
    """Also for a decorator with a backward function, under jit, grad, jvp and vmap."""

    @jr.bpda(backward=jnp.tanh)
    def sign(x):
        return jnp.sign(x - 0.5)

    np.testing.assert_array_equal(jax.jit(sign)(X), jnp.sign(X - 0.5))
    np.testing.assert_array_equal(jax.vmap(sign)(X), jnp.sign(X - 0.5))
    expected = 1 - jnp.tanh(X) ** 2
    reverse = jax.grad(lambda x: sign(x).sum())(X)
    forward = jax.jvp(sign, (X,), (jnp.ones_like(X),))[1]
    each = jax.vmap(jax.vmap(jax.grad(sign)))(X)
    for gradient in (reverse, forward, each):  # rounding of one multiplication
        np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    assert quantise.__name__ == "quantise"


def test_outputs_of_another_shape():
    """A thermometer code with a smooth code behind it."""
    levels = jnp.linspace(0.1, 0.9, 5)

    def smooth(x):
        return jax.nn.sigmoid(10 * (x[..., None] - levels.reshape(1, 1, 5)))

    encode = jr.bpda(lambda x: jnp.round(smooth(x)), backward=smooth)
    assert encode(X).shape == (3, 4, 5)
    assert set(np.unique(encode(X))) <= {0.0, 1.0}
    np.testing.assert_allclose(
        jax.grad(lambda x: encode(x).sum())(X),
        jax.grad(lambda x: smooth(x).sum())(X),
        rtol=1e-5,
    )
    with pytest.raises(ValueError, match="same shape is needed"):
        jr.bpda(lambda x: jnp.round(smooth(x)))(X)


def test_a_function_outside_jax():
    """A JPEG library has no derivative at all: it is called back, never differentiated."""

    def host(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(np.round, shape, x, vmap_method="expand_dims")

    value, grad = jax.jit(jax.value_and_grad(lambda x: jr.bpda(host)(x).sum()))(X)
    assert value == np.round(X).sum()
    np.testing.assert_array_equal(grad, jnp.ones_like(X))


def test_gradients_reach_parameters_that_backward_captures():
    """A defended model can be trained: custom rules would reject the closure."""

    def loss(scale):
        layer = jr.bpda(lambda x: jnp.round(scale * x), backward=lambda x: scale * x)
        return layer(X).sum()

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(3.0), X.sum(), rtol=1e-6)


def test_bfloat16_stays():
    """The type of the forward function is kept."""
    assert quantise(X.astype(jnp.bfloat16)).dtype == jnp.bfloat16
