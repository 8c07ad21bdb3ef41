"""The estimated gradient against the exact one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust.attacks.spsa.estimate import estimate_gradient

X = jax.random.uniform(jax.random.key(1), (3, 6), minval=0.2, maxval=0.8)
Y = jnp.array([0, 1, 0])
WEIGHTS = jax.random.normal(jax.random.key(2), (6, 2))
KEYS = jax.random.split(jax.random.key(0), 3)


def linear(x):
    return jnp.matmul(x, WEIGHTS, precision="highest")


def estimate(model=linear, x=X, threat=None, **settings):
    settings = dict(num_samples=512, delta=0.125) | settings
    run = functools.partial(
        estimate_gradient, jr.losses.margin, model, threat=threat, **settings
    )
    return jax.jit(lambda x, y, keys: run(x, y, keys=keys))(x, Y, KEYS)


EXACT = jax.grad(lambda x: jr.losses.margin(linear(x), Y).sum())(X)


def test_the_estimate_of_a_linear_loss():
    """A pair gives (g . v) v, so that the mean of n has variance about |g|^2 / n."""
    grad = estimate(threat=jr.Linf(0.1, bounds=None))
    norm = np.linalg.norm(EXACT, axis=-1, keepdims=True)
    # Standard error |g| / sqrt(256 pairs) = 0.0625 |g|; four of them for 18 numbers.
    assert (np.abs(grad - EXACT) < 0.25 * norm).all()
    pair = estimate(threat=jr.Linf(0.1, bounds=None), num_samples=2)
    sign = np.sign(pair) * np.sign(pair[:, :1])
    slope = np.sum(EXACT * sign, -1, keepdims=True)
    np.testing.assert_allclose(pair, slope * sign, rtol=1e-4)  # float32 differences


def test_chunks_draw_the_same_samples():
    """Only the order of a sum of 256 terms depends on the chunks."""
    threat = jr.Linf(0.1, bounds=None)
    whole, parts = estimate(threat=threat), estimate(threat=threat, chunk_size=64)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_mask_and_bounds_hold_for_the_samples():
    """The model sees valid data only, and masked coordinates as they are."""
    mask = np.array([1, 0, 1, 1, 1, 0])
    x = X.at[:, 0].set(0.0).at[:, 2].set(1.0)

    def strict(points):
        is_valid = (points >= 0).all(-1) & (points <= 1).all(-1)
        clean = jnp.tile(x, (len(points) // 3, 1))
        is_valid &= ((points == clean) | (mask != 0)[None]).all(-1)
        return jnp.where(is_valid[:, None], linear(points), jnp.nan)

    grad = np.asarray(estimate(strict, x, jr.Linf(0.1, mask=mask)))
    assert (grad[:, mask == 0] == 0).all() and (grad[:, mask != 0] != 0).all()
    # At a bound one of the two points is the iterate: half of the gradient.
    factor = np.where((x == 0) | (x == 1), 0.5, 1) * mask
    norm = np.linalg.norm(EXACT, axis=-1, keepdims=True)
    assert (np.abs(grad - factor * EXACT) < 0.25 * norm).all()


def test_losses_that_are_not_finite_count_as_zero():
    """A model that fails on one side of each pair leaves the estimate at zero."""

    def broken(points):
        return jnp.where(
            jnp.arange(len(points))[:, None] < 768, linear(points), jnp.nan
        )

    grad = estimate(broken, threat=jr.Linf(0.1))
    assert np.isfinite(grad).all() and (grad != 0).any()
    nothing = estimate(lambda x: linear(x) * jnp.inf, threat=jr.Linf(0.1))
    np.testing.assert_array_equal(nothing, 0)


@pytest.mark.parametrize(
    "settings",
    [
        dict(num_samples=3),
        dict(num_samples=0),
        dict(chunk_size=3),
        dict(chunk_size=48),
        dict(delta=0.0),
        dict(num_steps=0),
    ],
)
def test_misuse(settings):
    """Law 9: the message names the setting."""
    with pytest.raises(ValueError, match=next(iter(settings))):
        jr.SPSA(**settings)
