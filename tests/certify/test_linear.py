"""The linear oracle against linear programs, one for each target class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxrobust as jr

pytestmark = pytest.mark.thin

D, BATCH = 6, 4
RNG = np.random.default_rng(0)
MASK = np.array([1, 0, 1, 1, 1, 0])


def worst_margin(weights, bias, x, y, threat):
    """Return max over targets and perturbations of z_t - z_y, in float64."""
    low, high = np.full(D, -np.inf), np.full(D, np.inf)
    if threat.bounds is not None:
        low, high = threat.bounds[0] - x, threat.bounds[1] - x
    if threat.mask is not None:
        low, high = np.where(threat.mask, low, 0), np.where(threat.mask, high, 0)
    best = -np.inf
    for target in range(weights.shape[1]):
        if target == y:
            continue
        g = weights[:, target] - weights[:, y]
        clean = g @ x + bias[target] - bias[y]
        if isinstance(threat, jr.L1):
            limits = [(0, v) for v in high] + [(0, -v) for v in low]
            gain = -scipy.optimize.linprog(
                np.r_[-g, g], np.ones((1, 2 * D)), [threat.eps], bounds=limits
            ).fun
        elif isinstance(threat, jr.Linf):
            limits = np.c_[np.maximum(low, -threat.eps), np.minimum(high, threat.eps)]
            gain = -scipy.optimize.linprog(-g, bounds=limits).fun
        else:  # by duality: the minimum over multipliers m of a concave maximum

            def dual(log_m, g=g):
                m = np.exp(log_m)
                delta = np.clip(g / m, low, high)
                return m * threat.eps**2 / 2 + (g * delta - m * delta**2 / 2).sum()

            gain = scipy.optimize.minimize_scalar(
                dual, bounds=(-20, 20), method="bounded", options={"xatol": 1e-10}
            ).fun
        best = max(best, clean + gain)
    return best


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("kind, eps", [(jr.Linf, 0.3), (jr.L2, 0.7), (jr.L1, 1.2)])
def test_margin_is_the_optimum(classes, bounds, mask, kind, eps):
    """The closed form finds what a solver finds, with box and mask."""
    weights = RNG.normal(size=(D, classes)).astype(np.float32)
    bias = RNG.normal(size=classes).astype(np.float32)
    x = RNG.uniform(size=(BATCH, D)).astype(np.float32)
    y = RNG.integers(0, classes, BATCH)
    threat = kind(eps, bounds=bounds, mask=mask)
    x_adv, margin = jr.certify.linear_worst_case(
        jnp.asarray(weights), jnp.asarray(bias), jnp.asarray(x), jnp.asarray(y),
        threat=threat,
    )  # fmt: skip
    rows = [np.float64(v) for v in (weights, bias)]
    expected = [
        worst_margin(*rows, np.float64(x[i]), y[i], threat) for i in range(BATCH)
    ]
    # float32 sums of six terms; the solvers are more precise than that.
    np.testing.assert_allclose(margin, expected, rtol=2e-5, atol=2e-5)
    logits = jnp.matmul(x_adv, weights) + bias[None]
    found = jr.losses.margin(logits, jnp.asarray(y))
    np.testing.assert_allclose(found, margin, rtol=1e-5, atol=1e-5)
    assert (threat.distance(x_adv, jnp.asarray(x)) <= eps * (1 + 1e-6) + 1e-6).all()


def test_images_are_flattened():
    """Inputs of any shape; the weights act on the flattened example."""
    x = jax.random.uniform(jax.random.key(0), (3, 2, 3, 1))
    weights = jax.random.normal(jax.random.key(1), (6, 3))
    settings = dict(y=jnp.array([0, 1, 2]), threat=jr.L2(0.5))
    image, a = jr.certify.linear_worst_case(weights, jnp.zeros(3), x, **settings)
    flat, b = jr.certify.linear_worst_case(
        weights, jnp.zeros(3), x.reshape(3, 6), **settings
    )
    np.testing.assert_array_equal(image.reshape(3, 6), flat)
    np.testing.assert_array_equal(a, b)


def test_wrong_shape():
    """The message says which shape is needed."""
    with pytest.raises(ValueError, match=r"\[d, C\] = \[6, C\] is needed"):
        jr.certify.linear_worst_case(
            jnp.zeros((5, 2)), jnp.zeros(2), jnp.zeros((1, 6)), jnp.array([0]),
            threat=jr.Linf(0.1),
        )  # fmt: skip


def test_data_outside_the_bounds_are_refused():
    """Drawn into the bounds they would leave the ball."""
    x = jnp.full((1, D), -3.0)
    threat = jr.L2(0.1, bounds=(0, jnp.inf))
    with pytest.raises(ValueError, match="outside the bounds"):
        jr.certify.linear_worst_case(
            jnp.ones((D, 2)), jnp.zeros(2), x, jnp.zeros(1, int), threat=threat
        )
