"""Adding a bias agrees with `jax.lax` in value and gradients of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr

pytestmark = pytest.mark.thin

if jax.default_backend() != "cpu":
    pytest.skip("other platforms keep jax.lax's gradients", allow_module_level=True)

X = jax.random.normal(jax.random.key(0), (3, 5, 4, 2))
BIAS = jnp.array([0.5, -2.0])


def plus(x, bias):
    """Add the bias as Flax does, with axes of size one before it."""
    return x + bias.reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


def add(bias, x=X):
    return jnp.tanh(plus(x, bias))


def is_exchanged(fn, *args):
    return "fast_broadcast_in_dim" in str(
        jax.make_jaxpr(jr.fast_convolutions(fn))(*args)
    )


@pytest.mark.parametrize("swap", [False, True])
def test_equals_lax(swap):
    def fn(bias, x):
        return jnp.tanh(bias[None, None, None] + x) if swap else add(bias, x)

    assert is_exchanged(fn, BIAS, X)
    np.testing.assert_array_equal(jr.fast_convolutions(fn)(BIAS, X), fn(BIAS, X))

    def gradient(fn):
        return jax.jit(jax.grad(lambda *args: fn(*args).sum(), (0, 1)))(BIAS, X)

    for fast, plain in zip(
        gradient(jr.fast_convolutions(fn)), gradient(fn), strict=True
    ):
        # 60 terms of at most one, in another order.
        np.testing.assert_allclose(fast, plain, rtol=0, atol=60 * 2**-23)


def test_gradient_is_the_sum_of_the_cotangents():
    _, pull = jax.vjp(jr.fast_convolutions(lambda bias: plus(X, bias)), BIAS)
    cotangents = jnp.arange(X.size, dtype=jnp.float32).reshape(X.shape)
    # Whole numbers below 2^24: exact.
    np.testing.assert_array_equal(pull(cotangents)[0], cotangents.sum((0, 1, 2)))


def test_the_gradient_sums_over_one_axis():
    fast = jax.jit(jax.grad(lambda bias: jr.fast_convolutions(add)(bias).sum()))
    program = fast.lower(BIAS).as_text()
    assert "dimensions = [0, 1, 2]" not in program.split("optimization_barrier")[1]


def test_higher_derivatives_and_forward_mode():
    weights = jax.random.normal(jax.random.key(1), (2, 2))

    def scalar(fn):
        # Depends on the bias twice, so that its second derivative is full.
        return lambda bias: fn(weights @ bias).mean()

    def derivatives(fn):
        tangent = jax.jvp(scalar(fn), (BIAS,), (jnp.array([1.0, 3.0]),))[1]
        return tangent, jax.hessian(scalar(fn))(BIAS), jax.jacrev(scalar(fn))(BIAS)

    both = derivatives(jr.fast_convolutions(add)), derivatives(add)
    for fast, plain in zip(*both, strict=True):
        np.testing.assert_allclose(fast, plain, atol=1e-6)  # means of numbers below 10


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 1)])
def test_vmap(axes):
    bias = BIAS if axes[0] is None else jnp.stack([BIAS, -BIAS], axes[0])
    x = X if axes[1] is None else jnp.stack([X, 2 * X], axes[1])

    def gradient(fn):
        many = jax.vmap(fn, axes)
        return jax.grad(lambda bias: many(bias, x).sum())(bias)

    fast = gradient(jr.fast_convolutions(add))
    np.testing.assert_allclose(fast, gradient(add), atol=120 * 2**-23)  # as above


def test_shard_map():
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("batch",))
    spec = jax.sharding.PartitionSpec
    x = jnp.concatenate([X, X])[:4]

    def mapped(fn):
        parts = (spec(), spec("batch"))
        return jax.shard_map(fn, mesh=mesh, in_specs=parts, out_specs=spec("batch"))

    def gradient(fn):
        return jax.jit(jax.grad(lambda bias: fn(bias, x).sum()))(BIAS)

    fast = gradient(mapped(jr.fast_convolutions(add)))
    np.testing.assert_allclose(fast, gradient(add), atol=80 * 2**-23)  # as above


@pytest.mark.parametrize(
    "x, bias",
    [
        (jnp.ones((3, 2)), BIAS),  # one axis only
        (X, jnp.ones((4, 1))),  # not along the last axis
        (X, jnp.ones((4, 2))),
        (X[:1], BIAS),  # no batch
        (X[..., :0], BIAS[:0]),
        (X.astype(jnp.bfloat16), BIAS.astype(jnp.bfloat16)),
        (jnp.ones((3, 4, 2), int), jnp.ones(2, int)),
    ],
)
def test_other_additions_stay(x, bias):
    assert not is_exchanged(lambda bias, x: plus(x, bias), bias, x)


def test_several_in_one_function():
    def fn(bias):
        return plus(X, bias) * jax.jit(plus)(X, bias)

    gradients = [
        jax.grad(lambda bias, f=f: f(bias).sum())(BIAS)
        for f in (jr.fast_convolutions(fn), fn)
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-5)  # 60 terms, in another order


def test_a_plain_part_stays_plain():
    """Also behind a wrapper."""
    assert not is_exchanged(lambda bias: jr.plain_convolutions(add)(bias) * 2, BIAS)
