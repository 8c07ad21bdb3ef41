"""Threats as values: sampling, distances, errors, types, transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr

pytestmark = [pytest.mark.thin, pytest.mark.usefixtures("no_key_reuse")]

KINDS = [jr.Linf, jr.L2, jr.L1]
DRAWS = 4000
# Kolmogorov-Smirnov: exceeded with probability 2 exp(-2 n D^2) = 1e-6; the seed is fixed.
KS_BOUND = np.sqrt(np.log(2e6) / (2 * DRAWS))


def draw(threat, x):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    x = jnp.broadcast_to(x, (DRAWS, *jnp.shape(x)))
    return np.asarray(jax.jit(lambda t, k, x: t.sample(k, x))(threat, keys, x))


def assert_uniform(values):
    """Kolmogorov-Smirnov distance of `values` from the uniform distribution on [0, 1]."""
    grid = (np.arange(DRAWS) + 0.5) / DRAWS
    assert np.abs(np.sort(values) - grid).max() < KS_BOUND


def test_linf_samples_are_uniform_in_each_coordinate():
    """FGSM-RS and PGD start uniformly in the cube."""
    delta = draw(jr.Linf(0.5, bounds=None), np.zeros(3, np.float32))
    for coordinate in delta.T:
        assert_uniform(coordinate + 0.5)


@pytest.mark.parametrize("kind", [jr.L2, jr.L1])
@pytest.mark.parametrize("mask", [None, np.array([1, 0, 1, 1, 0])])
def test_ball_samples_are_uniform(kind, mask):
    """P(|delta| <= r) = (r / eps)^d, and no direction is preferred; d counts the mask."""
    threat = kind(0.5, bounds=None, mask=mask)
    delta = draw(threat, np.zeros(5, np.float32))
    dimension = 5 if mask is None else 3
    radius = np.linalg.norm(delta, 2 if kind is jr.L2 else 1, axis=-1)
    assert_uniform((radius / 0.5) ** dimension)
    free = delta[:, np.ones(5, bool) if mask is None else mask.astype(bool)]
    assert free.shape == (DRAWS, dimension)
    # Means within 5 standard errors of 0; coordinates alike in size.
    assert (np.abs(free.mean(0)) < 5 * free.std(0) / np.sqrt(DRAWS)).all()
    np.testing.assert_allclose(free.std(0), free.std(), rtol=0.1)
    if mask is not None:
        assert (delta[:, mask == 0] == 0).all()


def test_l1_samples_share_the_budget_like_a_dirichlet():
    """Uniform on the l1 sphere: |delta_1| / |delta|_1 is Beta(1, d - 1)."""
    delta = np.abs(draw(jr.L1(0.5, bounds=None), np.zeros(5, np.float32)))
    share = delta[:, 0] / delta.sum(-1)
    assert_uniform(1 - (1 - share) ** 4)


def test_l2_samples_have_uniform_directions():
    """On the sphere in three dimensions each coordinate is uniform (Archimedes)."""
    delta = draw(jr.L2(0.5, bounds=None), np.zeros(3, np.float32))
    assert_uniform((delta[:, 0] / np.linalg.norm(delta, axis=-1) + 1) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_feasible_and_their_own(kind):
    """Samples obey ball and bounds; each depends on its own key alone."""
    x = jax.random.uniform(jax.random.key(1), (6, 10))
    keys = jax.random.split(jax.random.key(2), 6)
    threat = kind(0.7)
    start = threat.sample(keys, x)
    assert (start >= 0).all() and (start <= 1).all()
    assert (threat.distance(start, x) <= 0.7 * (1 + 1e-6)).all()
    other = threat.sample(keys.at[1:].set(jax.random.split(jax.random.key(3), 5)), x)
    np.testing.assert_array_equal(start[0], other[0])
    assert (start[1:] != other[1:]).any(axis=-1).all()


@pytest.mark.parametrize("kind, expected", [(jr.Linf, 4), (jr.L2, 5), (jr.L1, 7)])
def test_distance(kind, expected):
    """The distances are the norms, of each example by itself."""
    x = jnp.zeros((2, 1, 3))
    x_adv = jnp.array([[[3.0, 0.0, -4.0]], [[0.0, 0.0, 0.0]]])
    np.testing.assert_allclose(kind(1.0).distance(x_adv, x), [expected, 0], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_eps_zero_returns_x(kind):
    """A ball without radius holds x alone: no rounding may move it."""
    x = jax.random.uniform(jax.random.key(0), (4, 6))
    keys = jax.random.split(jax.random.key(1), 4)
    threat = kind(0.0)
    np.testing.assert_array_equal(threat.project(x + 1, x), x)
    np.testing.assert_array_equal(threat.sample(keys, x), x)
    np.testing.assert_array_equal(threat.steepest(x - 0.5, x, 0.0), 0 * x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_bfloat16(kind, transform):
    """bf16 stays bf16; the norm holds up to one ulp (2^-8) of each coordinate."""
    x = jax.random.uniform(jax.random.key(0), (8, 6)).astype(jnp.bfloat16)
    x_adv = transform(lambda t, u, x: t.project(u, x))(kind(0.1), x - 1, x)
    assert x_adv.dtype == jnp.bfloat16 and (x_adv >= 0).all()
    slack = 0 if kind is jr.Linf else 6 * 2**-8
    assert (kind(0.1).distance(x_adv, x) <= jnp.float32(0.1) + slack).all()
    assert kind(0.1).steepest(x, x, 0.1).dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_over_eps_and_eps_per_example(kind):
    """Eps is traced data: a scalar, one per example, or mapped."""
    x = jax.random.uniform(jax.random.key(0), (3, 6))
    radii = jnp.array([0.1, 0.2, 0.3])
    mapped = jax.vmap(lambda eps: kind(eps).project(x + 1, x))(radii)
    whole = jax.vmap(lambda t: t.project(x + 1, x))(kind(radii, bounds=None))
    for i, eps in enumerate([0.1, 0.2, 0.3]):
        one = kind(eps).project(x + 1, x)
        # Compiled differently: a few ulp.
        np.testing.assert_allclose(mapped[i], one, atol=5e-7)
        np.testing.assert_allclose(kind(radii).project(x + 1, x)[i], one[i], atol=5e-7)
        expected = kind(eps, bounds=None).project(x + 1, x)
        np.testing.assert_allclose(whole[i], expected, atol=5e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [-0.1, float("nan"), np.array([0.1, -1])])
def test_impossible_eps(kind, eps):
    """A radius is not negative; the message says in which units."""
    with pytest.raises(ValueError, match=r"at least 0.*units of the data"):
        kind(eps)


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.0, float("nan")), (0.5, 0.5)])
def test_bounds_out_of_order(bounds):
    """Comparisons with NaN are False: NaN must not slip through."""
    with pytest.raises(ValueError, match=r"lower bound must be below.*bounds=None"):
        jr.L2(0.1, bounds=bounds)


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_may_meet_here_and_there(kind):
    """Where all may only grow, what is at the upper bound stays."""
    x = jnp.array([[0.3, 1.0, 0.5]])
    threat = kind(0.2, bounds=(x, 1.0))
    x_adv = threat.project(x + jnp.array([[0.1, 0.1, -0.3]]), x)
    np.testing.assert_allclose(x_adv, [[0.4, 1.0, 0.5]], atol=1e-6)
    step = threat.steepest(jnp.array([[1.0, 5.0, -1.0]]), x, 0.1)
    np.testing.assert_allclose(step, [[0.1, 0.0, 0.0]], atol=1e-6)


@pytest.mark.parametrize("bounds", [1.0, (0.0,), (0.0, 0.5, 1.0)])
def test_bounds_that_are_no_pair(bounds):
    """A single number is a frequent guess."""
    with pytest.raises(ValueError, match=r"a pair.*needed"):
        jr.Linf(0.1, bounds=bounds)


def test_structures_of_different_classes_differ():
    """Equal structures let `jax.jit` run one threat's program for another.

    `jax.tree_util.register_dataclass` makes them equal, which is why it is not used.
    """
    values = [
        *(kind(0.1) for kind in KINDS),
        jr.FGSM(),
        jr.PGD(),
        jr.Restarts(jr.PGD(), 2),
        jr.WorstOf((jr.FGSM(),)),
        jr.training.standard(),
        jr.training.adversarial(jr.FGSM(), jr.Linf(0.1)),
    ]
    structures = [jax.tree.structure(value) for value in values]
    for i, first in enumerate(structures):
        assert first == jax.tree.structure(values[i])
        assert all(first != second for second in structures[i + 1 :])


def test_threats_survive_tree_operations():
    """Placeholders that JAX puts into a structure are not checked as settings."""
    threat = jr.Linf(0.25, mask=np.ones(3))
    assert jax.tree.map(lambda v: v, threat).eps == 0.25
    assert jax.tree.map(lambda v: -1.0, threat).eps == -1.0
    assert "0.25" in repr(jr.Linf(0.25))


def test_repr_with_array_bounds():
    """Bounds for each feature are shown, and not compared with the default as one truth."""
    bounds = (jnp.zeros(2), jnp.array([1.0, 2.0]))
    assert repr(jr.Linf(0.5, bounds=bounds)).count("<float32[2] crc32 ") == 2
    assert repr(jr.Linf(0.5, bounds=(0.0, 1.0))) == "Linf(0.5)"
    assert repr(jr.Linf(0.5, bounds=(0.0, 2.0))) == "Linf(0.5, bounds=(0.0, 2.0))"
