"""Threats: projections and steepest directions against independent references."""

import functools
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import jaxrobust as jr

pytestmark = pytest.mark.thin

SHAPE = (2, 2, 2)  # one example: height, width, channels
BATCH = 3
NORM = {jr.Linf: np.inf, jr.L2: 2, jr.L1: 1}
BOUNDS = {
    "none": None,
    "scalar": (0.0, 1.0),
    "channel": (np.array([0.0, -0.5], np.float32), np.array([1.0, 0.75], np.float32)),
    "pixel": (
        np.linspace(-0.5, 0.25, 8, dtype=np.float32).reshape(SHAPE),
        np.linspace(0.5, 1.0, 8, dtype=np.float32).reshape(SHAPE),
    ),
}
MASK = np.array([1, 1, 0, 1, 1, 0, 1, 1], np.float32).reshape(SHAPE)

project = jax.jit(lambda threat, x_adv, x: threat.project(x_adv, x))
steepest = jax.jit(lambda threat, grad, x, size: threat.steepest(grad, x, size))

cases = functools.partial(
    hypothesis.given,
    seed=st.integers(0, 2**31),
    kind=st.sampled_from([jr.Linf, jr.L2, jr.L1]),
    bounds=st.sampled_from(list(BOUNDS)),
    mask=st.sampled_from([None, MASK]),
    eps=st.sampled_from([1e-3, 8 / 255, 0.3, 1.5, (0.0, 0.1, 3.0)]),
    scale=st.sampled_from([0.01, 1.0, 100.0]),
)
examples = hypothesis.settings(max_examples=50, deadline=None, derandomize=True)


def problem(seed, kind, bounds, mask, eps, scale):
    """Return a threat, points x in its bounds, and points x_adv anywhere."""
    rng = np.random.default_rng(seed)
    eps = np.asarray(eps, np.float32) if isinstance(eps, tuple) else eps
    threat = kind(eps, bounds=BOUNDS[bounds], mask=mask)
    lower, upper = BOUNDS[bounds] or (-1.0, 1.0)
    x = rng.uniform(size=(BATCH, *SHAPE)) * (upper - np.asarray(lower)) + lower
    x = np.where(rng.uniform(size=x.shape) < 0.2, lower, x).astype(np.float32)
    x = np.minimum(x, np.asarray(upper, np.float32))
    step = scale * rng.normal(size=x.shape)
    # Ties and zeros are where sorting and active sets go wrong.
    step = np.where(rng.uniform(size=x.shape) < 0.3, np.round(step), step)
    return threat, (x + step).astype(np.float32), x


def box(threat, x):
    """Return the range of the perturbation of each coordinate, in float64."""
    lower, upper = threat.bounds or (-np.inf, np.inf)
    low, high = (np.broadcast_to(np.float64(b), x.shape) - x for b in (lower, upper))
    if threat.mask is not None:
        low, high = np.where(threat.mask, low, 0), np.where(threat.mask, high, 0)
    return low, high


def reference(kind, u, low, high, radius):
    """Project one perturbation in float64: bisection on the KKT multiplier."""
    if kind is jr.Linf:
        return np.clip(np.clip(u, -radius, radius), low, high).reshape(-1)

    def candidate(t):
        if kind is jr.L2:
            return np.clip((1 - t) * u, low, high)
        return np.clip(np.sign(u) * np.maximum(abs(u) - t * abs(u).max(), 0), low, high)

    u, low, high = (v.reshape(-1) for v in (u, low, high))
    if np.linalg.norm(candidate(0.0), NORM[kind]) <= radius:
        return candidate(0.0)
    near, far = 0.0, 1.0
    for _ in range(100):
        middle = (near + far) / 2
        is_outside = np.linalg.norm(candidate(middle), NORM[kind]) > radius
        near, far = (middle, far) if is_outside else (near, middle)
    return candidate(far)


def assert_feasible(threat, x_adv, x):
    """Hold `x_adv` to ball, bounds and mask at the precision that the class states."""
    assert x_adv.dtype == x.dtype and np.isfinite(x_adv).all()
    eps = np.broadcast_to(np.float32(threat.eps), len(x))
    norm = NORM[type(threat)]
    if norm == np.inf:
        largest = np.abs(x_adv - x).reshape(len(x), -1).max(-1)
        assert (largest <= eps).all()  # exactly, in float32
    else:
        delta = (np.float64(x_adv) - x).reshape(len(x), -1)
        ulp = np.spacing(np.maximum(abs(x_adv), abs(x))).reshape(len(x), -1)
        slack = np.linalg.norm(ulp, norm, axis=-1) + 1e-6 * eps  # as documented
        assert (np.linalg.norm(delta, norm, axis=-1) <= eps + slack).all()
    if threat.bounds is not None:
        assert (x_adv >= threat.bounds[0]).all() and (x_adv <= threat.bounds[1]).all()
    if threat.mask is not None:
        assert (np.where(threat.mask, 0, x_adv - x) == 0).all()


@examples
@cases()
def test_project_is_feasible_and_idempotent(**case):
    """A projection lands in the set, and leaves what is in the set alone."""
    threat, x_adv, x = problem(**case)
    once = np.asarray(project(threat, x_adv, x))
    assert_feasible(threat, once, x)
    # Rounding x + delta moves an l2 or l1 point outside by an ulp: it is pulled back.
    tolerance = 0 if isinstance(threat, jr.Linf) else 2e-6
    np.testing.assert_allclose(project(threat, once, x), once, rtol=0, atol=tolerance)


@examples
@cases()
def test_project_is_the_nearest_point(**case):
    """The projection equals a float64 reference that shares no code with it."""
    threat, x_adv, x = problem(**case)
    ours = (np.float64(project(threat, x_adv, x)) - x).reshape(BATCH, -1)
    low, high = box(threat, x)
    eps = np.broadcast_to(threat.eps, BATCH)
    theirs = [
        reference(type(threat), np.float64(x_adv[i]) - x[i], low[i], high[i], eps[i])
        for i in range(BATCH)
    ]
    # Rounding of the inputs: a few ulp of the largest number that takes part.
    tolerance = 8 * np.finfo(np.float32).eps * max(1, abs(x_adv).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@examples
@cases()
def test_project_satisfies_the_variational_inequality(**case):
    """<v - Pv, z - Pv> <= 0 for all feasible z: what defines a projection.

    It implies |Pv - z| <= |v - z|, checked as well.
    """
    threat, v, x = problem(**case)
    projected = np.float64(project(threat, v, x))
    noise = np.random.default_rng(case["seed"]).normal(size=(5, *x.shape)) * 0.5
    for z in noise:
        z = np.float64(project(threat, (x + z).astype(np.float32), x))
        products = ((v - projected) * (z - projected)).reshape(BATCH, -1).sum(-1)
        # One ulp of a coordinate of Pv, times the length of v - Pv.
        lengths = np.linalg.norm((v - projected).reshape(BATCH, -1), axis=-1)
        assert (products <= 5e-6 * (1 + lengths)).all()
        before = np.linalg.norm((v - z).reshape(BATCH, -1), axis=-1)
        after = np.linalg.norm((projected - z).reshape(BATCH, -1), axis=-1)
        assert (after <= before + 5e-6).all()


@pytest.mark.parametrize("kind", [jr.L2, jr.L1])
def test_project_agrees_with_a_general_solver(kind):
    """SLSQP, which knows nothing of KKT forms, finds the same point."""
    x = np.array([[0.1, 0.9, 0.5, 0.5]], np.float32)
    x_adv = np.array([[0.7, 1.4, -0.4, 0.3]], np.float32)
    ours = np.asarray(kind(0.6).project(x_adv, x))[0] - x[0]

    def room(parts):  # positive and negative parts make the norms smooth
        delta = parts[:4] + parts[4:]
        return 0.6 - (
            delta.sum() if kind is jr.L1 else np.sqrt((delta**2).sum() + 1e-15)
        )

    result = scipy.optimize.minimize(
        lambda p: ((p[:4] - p[4:] - (x_adv[0] - x[0])) ** 2).sum(),
        np.full(8, 0.01),
        bounds=[(0, 1 - v) for v in x[0]] + [(0, v) for v in x[0]],
        constraints={"type": "ineq", "fun": room},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    # SLSQP stops at about the square root of its tolerance.
    np.testing.assert_allclose(ours, result.x[:4] - result.x[4:], atol=2e-4)


@pytest.mark.parametrize(
    "kind, theirs",
    [
        (jr.Linf, optax.projections.projection_linf_ball),
        (jr.L2, optax.projections.projection_l2_ball),
        (jr.L1, optax.projections.projection_l1_ball),
    ],
)
def test_project_agrees_with_optax(kind, theirs):
    """Without bounds the projections are those of optax."""
    u = 3 * jax.random.normal(jax.random.key(0), (20, 8))
    ours = kind(1.5, bounds=None).project(u, jnp.zeros_like(u))
    with jax.numpy_rank_promotion("allow"):
        expected = jax.vmap(lambda v: theirs(v, 1.5))(u)
    # Both compute in float32, on numbers of magnitude up to 10.
    np.testing.assert_allclose(ours, expected, atol=3e-6)


@pytest.mark.parametrize("kind", [jr.Linf, jr.L2, jr.L1])
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
@pytest.mark.parametrize("size", [1e3, 1e6, 1e20, 1e-20])
def test_project_far_away_points_stay_feasible(kind, bounds, size):
    """An optimizer may step anywhere: it must not leave the ball."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(4, 784)).astype(np.float32)
    signs = rng.choice([-1, 1], x.shape) * np.ones_like(x)
    for u in (signs, signs * rng.uniform(0.999, 1, x.shape), rng.normal(size=x.shape)):
        threat = kind(1.5, bounds=bounds)
        x_adv = (x + size * u).astype(np.float32)
        assert_feasible(threat, np.asarray(project(threat, x_adv, x)), x)


def value_reference(kind, grad, low, high, radius):
    """Return max <grad, delta>: linear programs, or a dual bound for l2."""
    if kind is jr.L2:

        def dual(log_multiplier):  # weak duality: an upper bound for every multiplier
            m = np.exp(log_multiplier)
            delta = np.clip(grad / m, low, high)
            return m * radius**2 / 2 + (grad * delta - m * delta**2 / 2).sum()

        return scipy.optimize.minimize_scalar(
            dual, bounds=(-30, 30), method="bounded", options={"xatol": 1e-10}
        ).fun
    if kind is jr.Linf:
        limits = np.stack([np.maximum(low, -radius), np.minimum(high, radius)], -1)
        return -scipy.optimize.linprog(-grad, bounds=limits).fun
    limits = [(0, h) for h in high] + [(0, -lo) for lo in low]
    costs = np.concatenate([-grad, grad])
    return -scipy.optimize.linprog(costs, np.ones((1, 16)), [radius], bounds=limits).fun


@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
@cases(size=st.sampled_from([0.05, 0.5, 2.0]))
def test_steepest_attains_the_exact_maximum(size, **case):
    """The step is feasible and its gain is what a linear program finds."""
    threat, x_adv, x = problem(**case)
    grad = np.float64(x_adv) - x
    delta = np.float64(steepest(threat, grad.astype(np.float32), x, size))
    low, high = box(threat, x)
    # Room is computed in float32, bounds of magnitude 1.
    assert (delta >= low - 1e-6).all() and (delta <= high + 1e-6).all()
    for i in range(BATCH):
        flat = [v[i].reshape(-1) for v in (grad, low, high)]
        gain = (flat[0] * delta[i].reshape(-1)).sum()
        norm = np.linalg.norm(delta[i].reshape(-1), NORM[type(threat)])
        assert norm <= size * (1 + 2e-6)  # rounding of a sum of 8 terms
        best = value_reference(type(threat), *flat, size)
        assert gain >= best - 1e-5 * (1 + abs(best))  # solver and float32 rounding


@pytest.mark.parametrize("radius", [0.0, 0.25])
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_steepest_grows_with_its_length(radius, bounds):
    """The derivative is the unit gradient, at a length of 0 too."""
    x, grad = jnp.full((1, 2), 0.5), jnp.array([[3.0, 4.0]])
    steps = jr.L2(radius, bounds=bounds).steepest
    delta, slope = jax.jvp(lambda r: steps(grad, x, r), (radius,), (1.0,))
    np.testing.assert_allclose(delta, radius * grad / 5, rtol=1e-6)
    np.testing.assert_allclose(slope, grad / 5, rtol=1e-6)


@pytest.mark.parametrize("radius", [0.3, 31.0, 1000.0])
def test_steepest_uses_slopes_of_any_ratio(radius):
    """What the steep coordinate leaves of the radius goes to one 1e-37 times flatter."""
    x = jnp.zeros((2, 3))
    grad = jnp.array([[1.0, 1e-37, 0.0], [-1.0, -3e-38, 3e-38]])
    bounds = (np.float32([-1, -5000, -5000]), np.float32([1, 5000, 5000]))
    delta = jr.L2(radius, bounds=bounds).steepest(grad, x, radius)
    first = min(radius, 1.0)
    rest = np.sqrt(radius**2 - first**2)
    part = rest / np.sqrt(2)
    np.testing.assert_allclose(
        delta, [[first, rest, 0], [-first, -part, part]], rtol=2e-6, atol=1e-20
    )


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
@hypothesis.given(
    seed=st.integers(0, 2**31),
    size=st.sampled_from([1e6, 1e9, 1e20]),
    eps=st.sampled_from([0.1, 1.5, 4.0]),
    kind=st.sampled_from([jr.L1, jr.L2]),
    spread=st.sampled_from([0.0, 0.1, 1.0, 30.0]),
)
def test_project_is_the_nearest_point_from_far_away(seed, size, eps, kind, spread):
    """Up to 1e20 eps away, to rounding of what the given numbers say.

    Coordinates are far away by the same length up to `spread` times eps and numbers of
    ordinary size are among them, which matter where the box holds the others back.
    """
    rng = np.random.default_rng(seed)
    u = rng.choice([-1, 1], (BATCH, 8)) * size + spread * eps * rng.normal(
        size=(BATCH, 8)
    )
    u = np.where(rng.uniform(size=u.shape) < 0.4, eps * rng.normal(size=u.shape), u)
    u = np.float32(u).reshape(BATCH, *SHAPE)
    x = np.zeros_like(u)
    room = rng.uniform(0.1, 1, SHAPE).astype(np.float32)
    bounds = (-room, room) if seed % 3 else None
    threat = kind(eps, bounds=bounds)
    ours = np.float64(project(threat, u, x)).reshape(BATCH, -1)
    low, high = box(threat, x)
    for i in range(BATCH):
        theirs = exact_l1 if kind is jr.L1 else nearest_l2
        expected = theirs(
            np.float64(u[i]).ravel(), low[i].ravel(), high[i].ravel(), eps
        )
        np.testing.assert_allclose(ours[i], expected, rtol=0, atol=3e-6 * eps)


def exact_l1(u, low, high, radius):
    """Project by the break points of the sum, in fractions: nothing is rounded."""
    limits = np.minimum(np.where(u > 0, high, -low), np.abs(u))
    radius = Fraction(radius)
    pairs = [(Fraction(v), Fraction(r)) for v, r in zip(np.abs(u), limits, strict=True)]

    def kept(multiplier):
        return [min(max(v - multiplier, 0), r) for v, r in pairs]

    breaks = [0, *(v for v, _ in pairs), *(v - r for v, r in pairs)]
    point = min(b for b in breaks if sum(kept(b)) <= radius)
    moving = sum(v - r < point <= v for v, r in pairs)
    rise = (radius - sum(kept(point))) / moving if point and moving else 0
    return np.sign(u) * np.array([float(v) for v in kept(point - rise)])


def nearest_l2(u, low, high, radius):
    """Project by bisection over the logarithm of the scale."""
    near, far = -60.0, 1.0
    if np.linalg.norm(np.clip(u, low, high)) <= radius:
        return np.clip(u, low, high)
    for _ in range(200):
        middle = (near + far) / 2
        is_inside = np.linalg.norm(np.clip(np.exp(middle) * u, low, high)) <= radius
        near, far = (middle, far) if is_inside else (near, middle)
    return np.clip(np.exp(near) * u, low, high)


@pytest.mark.parametrize("kind", [jr.Linf, jr.L2, jr.L1])
@pytest.mark.parametrize("size", [1e20, 1.0, 1e-30])
def test_steepest_does_not_depend_on_the_size_of_the_gradient(kind, size):
    """Gradients of confident models are tiny, others huge: same direction."""
    x = jnp.full((2, *SHAPE), 0.5)
    grad = jax.random.normal(jax.random.key(0), x.shape)
    expected = kind(0.3).steepest(grad, x, 0.3)
    # Scaling by a factor that is no power of two rounds once.
    np.testing.assert_allclose(
        kind(0.3).steepest(grad * size, x, 0.3), expected, rtol=1e-5, atol=1e-7
    )
    assert (kind(0.3).steepest(0 * grad, x, 0.3) == 0).all()
