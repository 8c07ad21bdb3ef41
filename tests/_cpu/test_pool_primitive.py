"""Max-pooling agrees with `jax.lax` in value and gradient, ties included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxrobust as jr

if jax.default_backend() != "cpu":
    pytest.skip("other platforms keep jax.lax's gradients", allow_module_level=True)

# window, strides, padding of images [B, H, W, C]
CASES = {
    "two": ((1, 2, 2, 1), (1, 2, 2, 1), "SAME"),
    "valid": ((1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "overlapping": ((1, 3, 3, 1), (1, 2, 2, 1), "SAME"),
    "asymmetric": ((1, 2, 3, 1), (1, 1, 2, 1), ((0, 0), (1, 0), (0, 2), (0, 0))),
    "over channels": ((1, 1, 1, 3), (1, 1, 1, 3), "VALID"),
}


def pooled(x, window, strides, padding):
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)


def gradient(fn, case):
    return jax.jit(
        jax.grad(lambda x: (fn(lambda x: pooled(x, *CASES[case]))(x) ** 2).sum())
    )


@pytest.mark.parametrize("case", CASES)
def test_equals_lax(case):
    # Few different values: most windows have ties, of which the first must win.
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(1, 4, size=(2, 7, 6, 3)), jnp.float32)
    fast = gradient(jr.fast_convolutions, case)
    assert "fast_reduce_window_max" in str(jax.make_jaxpr(fast)(x))
    assert "select_and_scatter" not in fast.lower(x).as_text()
    # Sums of a few small whole numbers: exact.
    np.testing.assert_array_equal(fast(x), gradient(lambda fn: fn, case)(x))


@pytest.mark.parametrize("axis", [0, 2, 4])
def test_vmap(axis):
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
    stacked = jnp.stack([x, -x], axis)

    def total(fn):
        many = jax.vmap(fn(lambda x: pooled(x, *CASES["overlapping"])), axis)
        return jax.jit(jax.grad(lambda x: jnp.sin(many(x)).sum()))(stacked)

    # A pixel sums up to four cosines, maybe in another order.
    np.testing.assert_allclose(
        total(jr.fast_convolutions), total(lambda fn: fn), atol=1e-6
    )


def test_forward_mode():
    # Distinct whole numbers: XLA's own tangent rounds, with a coarser value, below 2^-20.
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.permutation(2 * 6 * 6 * 3).reshape(2, 6, 6, 3), jnp.float32)
    both = [
        jax.jvp(fn(lambda x: pooled(x, *CASES["two"])), (x,), (x * 2,))
        for fn in (jr.fast_convolutions, lambda fn: fn)
    ]
    np.testing.assert_array_equal(*(tangent for _, tangent in both))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int32])
def test_other_types_stay(dtype):
    def fn(x):
        return lax.reduce_window(x, x.dtype.type(0), lax.max, (2, 2), (2, 2), "VALID")

    x = jnp.ones((4, 4), dtype)
    assert "fast" not in str(jax.make_jaxpr(jr.fast_convolutions(fn))(x))


def test_dilated_windows_stay():
    def fn(x):
        dilation = {"window_dilation": (2, 2)}
        return lax.reduce_window(
            x, -jnp.inf, lax.max, (2, 2), (1, 1), "VALID", **dilation
        )

    program = str(jax.make_jaxpr(jr.fast_convolutions(fn))(jnp.ones((4, 4))))
    assert "fast" not in program
