"""Projections onto hyperplane and box: scipy's linear programs decide what is optimal."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from jaxrobust.threats import hyperplanes, norms

pytestmark = pytest.mark.thin

FEATURES = 6
BATCH = 3
NEAREST = {
    np.inf: jax.jit(hyperplanes.nearest_linf),
    2: jax.jit(hyperplanes.nearest_l2),
    1: jax.jit(hyperplanes.nearest_l1),
}
each_order = pytest.mark.parametrize("order", NEAREST)
cases = functools.partial(
    hypothesis.given,
    seed=st.integers(0, 2**31),
    box=st.sampled_from(["none", "some", "full", "frozen"]),
    scale=st.sampled_from([1e-20, 1.0, 1e20]),
    reach=st.sampled_from([0.0, 0.01, 0.5, 0.99, 3.0]),
)
examples = hypothesis.settings(max_examples=40, deadline=None, derandomize=True)


def problem(seed, box, scale, reach):
    """Return w, gain, low, high in float32; `reach` is the gain in units of the box's."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(BATCH, FEATURES))
    # Ties and zeros are where sorting and active sets go wrong.
    w = np.where(rng.uniform(size=w.shape) < 0.4, np.round(w), w)
    low, high = -rng.uniform(size=w.shape), rng.uniform(size=w.shape)
    low = np.where(rng.uniform(size=w.shape) < 0.2, 0, low)
    size = np.sum(np.maximum(w * low, w * high), -1, keepdims=True)
    gain = reach * rng.choice([-1, 1], size=(BATCH, 1)) * size
    free = {"none": 1.0, "some": 0.5, "full": 0.0, "frozen": 0.0}[box]
    is_open = rng.uniform(size=w.shape) < free
    low, high = np.where(is_open, -np.inf, low), np.where(is_open, np.inf, high)
    if box == "frozen":
        low[:, ::2] = high[:, ::2] = 0
    return tuple(np.float32(v) for v in (scale * w, scale * gain, low, high))


def reachable(w, gain, low, high):
    """Return the gain nearest to `gain` that the box allows, for one example."""
    w, low, high = (values[w != 0] for values in (w, low, high))
    smallest, largest = np.minimum(w * low, w * high), np.maximum(w * low, w * high)
    return np.clip(gain, smallest.sum(), largest.sum())


def smallest_norm(order, w, gain, low, high):
    """Return min ||delta|| for p = 1, infinity, as a linear program in (delta, t)."""
    eye, count = np.eye(FEATURES), FEATURES if order == 1 else 1
    spread = eye if order == 1 else np.ones((FEATURES, 1))
    solution = linprog(
        np.concatenate([np.zeros(FEATURES), np.ones(count)]),
        A_ub=np.block([[eye, -spread], [-eye, -spread]]),
        b_ub=np.zeros(2 * FEATURES),
        A_eq=np.concatenate([w, np.zeros(count)])[None],
        b_eq=[gain],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * count],
    )
    assert solution.success
    return solution.fun


@each_order
@examples
@cases()
def test_solution_is_feasible_and_optimal(order, **case):
    """On the hyperplane, in the box, and no feasible point is nearer."""
    arrays = problem(**case)
    deltas = np.float64(NEAREST[order](*arrays))
    arrays = [np.float64(values) for values in arrays]
    for w, gain, low, high, delta in zip(*arrays, deltas, strict=True):
        w, gain = w / case["scale"], gain[0] / case["scale"]
        assert (delta >= low).all() and (delta <= high).all()
        gain = reachable(w, gain, low, high)
        # A sum of six float32 numbers of the order of the gain.
        np.testing.assert_allclose(w @ delta, gain, rtol=1e-5, atol=1e-5)
        gain = w @ delta  # where exactly it is, so that the problem below is feasible
        if order == 2:
            # The nearest point minimises its own direction: <delta, z> >= <delta, delta>.
            # A finite box: rounding of delta makes the program unbounded without one.
            span = 1 + 2 * abs(delta).max()
            bounds = [*zip(np.maximum(low, -span), np.minimum(high, span), strict=True)]
            found = linprog(delta, A_eq=w[None], b_eq=[gain], bounds=bounds)
            # Six products of float32 numbers of size delta and span.
            assert found.fun >= delta @ delta - 1e-5 * span**2
        else:
            best = smallest_norm(order, w, gain, low, high)
            # The linear program is solved to 1e-7; ours in float32.
            assert np.linalg.norm(delta, order) <= best + 1e-5


@each_order
def test_a_box_without_the_hyperplane_gives_its_best_corner(order):
    """Each coordinate goes as far as it can; one without slope stays."""
    w = jnp.array([[1.0, -2.0, 0.0, 0.5], [1.0, -2.0, 0.0, 0.5]])
    low, high = jnp.full((2, 4), -0.25), jnp.full((2, 4), 0.75)
    delta = NEAREST[order](w, jnp.array([[10.0], [-10.0]]), low, high)
    corners = [[0.75, -0.25, 0, 0.75], [-0.25, 0.75, 0, -0.25]]
    np.testing.assert_array_equal(delta, np.float32(corners))


@each_order
def test_without_bounds_the_distance_is_gain_by_dual_norm(order):
    """The closed form |gain| / ||w||_dual, to float32 rounding."""
    w = np.random.default_rng(0).normal(size=(BATCH, FEATURES)).astype(np.float32)
    gain = np.array([[0.5], [-2.0], [0.0]], np.float32)
    delta = NEAREST[order](w, gain, np.full_like(w, -np.inf), np.full_like(w, np.inf))
    dual = {np.inf: 1, 2: 2, 1: np.inf}[order]
    exact = abs(gain[:, 0]) / np.linalg.norm(w, dual, axis=-1)
    found = np.linalg.norm(delta, order, axis=-1)
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    np.testing.assert_allclose(norms.safe_norm(w, dual), exact_norm(w, dual), rtol=1e-6)


def exact_norm(w, order):
    return np.linalg.norm(np.float64(w), order, axis=-1)


@each_order
@pytest.mark.parametrize("gain", [0.0, 1.0, np.inf, np.nan])
@pytest.mark.parametrize("bound", [1.0, np.inf])
def test_no_slope_is_no_step(order, gain, bound):
    """A zero gradient leaves the point where it is, whatever the gap."""
    zero, room = jnp.zeros((2, 3)), jnp.full((2, 3), bound)
    delta = NEAREST[order](zero, jnp.full((2, 1), gain), -room, room)
    np.testing.assert_array_equal(delta, zero)


def test_the_norm_of_extreme_gradients():
    """Squares of 1e-30 and 1e30 leave the range of float32; the norm does not."""
    w = jnp.array([[3e-30, 4e-30], [3e30, 4e30], [0.0, 0.0]])
    np.testing.assert_allclose(norms.safe_norm(w, 2), [5e-30, 5e30, 0], rtol=1e-6)
