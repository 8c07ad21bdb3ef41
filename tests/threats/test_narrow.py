"""Inputs of half precision: no step is lost, no point leaves the ball by rounding."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust._core import rounding
from jaxrobust.threats import narrow

pytestmark = pytest.mark.thin

HALF = [jnp.bfloat16, jnp.float16]
BATCH, FEATURES = 16, 48
KEY = jax.random.key(0)
WEIGHTS = jax.random.normal(jax.random.key(1), (FEATURES, 2))
X = jax.random.uniform(jax.random.key(2), (BATCH, FEATURES), minval=0.2)
BOUNDS = (0.1, 1.003)  # neither can be written in half precision


def model(x):
    return jnp.matmul(x.astype(jnp.float32) - 0.6, WEIGHTS, precision="highest")


def problem(dtype):
    x = X.astype(dtype)
    return x, model(x).argmax(-1)


def assert_feasible(x_adv, x, threat):
    """Hold points to the threat in float64, where nothing is rounded."""
    assert x_adv.dtype == x.dtype
    moved, x, x_adv = np.float64(x_adv) - np.float64(x), *map(np.float64, (x, x_adv))
    norm = np.linalg.norm(moved, float(threat.order), axis=-1)
    assert (norm <= np.float32(threat.eps) * (1 + 1e-6)).all()
    lower, upper = threat.bounds
    assert (x_adv >= lower).all() and (x_adv <= upper).all()


@pytest.mark.parametrize("eps", [1 / 255, 2 / 255])
@pytest.mark.parametrize("num_steps", [20, 100])
def test_small_steps_add_up(eps, num_steps):
    """Steps below the resolution reach the corner of the ball, as one long step does.

    Iterates in bfloat16 did not move at all with 100 steps.
    """
    x, y = problem(jnp.bfloat16)
    threat = jr.Linf(eps, bounds=BOUNDS)
    corner = jr.fgsm(model, x, y, threat=threat)
    found = jr.pgd(model, x, y, threat=threat, num_steps=num_steps, key=KEY)
    np.testing.assert_array_equal(found, corner)
    assert_feasible(found, x, threat)
    assert (found != x).any(axis=-1).all()


@pytest.mark.parametrize(
    "attack, threat, dtype",
    [
        (jr.PGD(num_steps=10), jr.L2(0.2, bounds=BOUNDS), jnp.float16),
        (jr.APGD(num_steps=10), jr.L1(0.5, bounds=BOUNDS), jnp.bfloat16),
        (jr.FAB(num_steps=5), jr.L2(0.3, bounds=BOUNDS), jnp.bfloat16),
        (jr.Square(num_queries=20), jr.Linf(0.01, bounds=BOUNDS), jnp.float16),
    ],
    ids=["pgd", "apgd", "fab", "square"],
)
def test_points_are_feasible_in_their_own_type(attack, threat, dtype):
    """Nothing is outside of ball or bounds, and the attack is worth its steps."""
    x, y = problem(dtype)
    x_adv = attack(model, x, y, threat=threat, key=KEY)
    assert_feasible(x_adv, x, threat)
    gained = jr.losses.margin(model(x_adv), y) - jr.losses.margin(model(x), y)
    assert (gained > 0).mean() > 0.5


@pytest.mark.slow
def test_most_of_the_optimum_is_kept():
    """What lies between the numbers of the type costs an l_2 attack a few percent."""
    x, y = problem(jnp.bfloat16)
    threat = jr.L2(0.2, bounds=BOUNDS)
    wide = x.astype(jnp.float32)
    _, best = jr.certify.linear_worst_case(
        WEIGHTS, -0.6 * WEIGHTS.sum(0), wide, y, threat=threat
    )
    clean = jr.losses.margin(model(x), y)
    x_adv = jr.pgd(model, x, y, threat=threat, num_steps=10, key=KEY)
    share = (jr.losses.margin(model(x_adv), y) - clean) / (best - clean)
    assert (share > 0.95).all()


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A user's ball: the l_2 norm, written without the library's classes."""

    eps: float
    bounds: tuple = BOUNDS
    mask: None = None
    order: float = 2.0

    def project(self, x_adv, x):
        size = self.distance(x_adv, x)[:, None]
        scale = jnp.minimum(1, self.eps / jnp.maximum(size, 1e-12))
        return jnp.clip((x + scale * (x_adv - x)).astype(x.dtype), *self.bounds)

    def steepest(self, grad, x, step_size):
        del x
        norm = jnp.linalg.norm(grad, axis=-1, keepdims=True)
        return jnp.asarray(step_size).reshape(-1, 1) * grad / norm

    def sample(self, keys, x):
        draw = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))
        return self.project(x + draw(keys), x)

    def distance(self, x_adv, x):
        return jnp.sqrt(jnp.sum((x_adv - x) ** 2, -1))

    def with_eps(self, eps):
        return dataclasses.replace(self, eps=eps)


def test_a_threat_of_the_user():
    """What has the methods of a threat is held to its ball as well."""
    x, y = problem(jnp.bfloat16)
    threat = Foreign(0.2)
    x_adv = jr.pgd(model, x, y, threat=threat, num_steps=10, key=KEY)
    assert_feasible(x_adv, x, threat)
    assert (jr.losses.margin(model(x_adv), y) > jr.losses.margin(model(x), y)).all()


@pytest.mark.parametrize("threat", [jr.L2(0.15), jr.Linf(0.01)], ids=["l2", "linf"])
def test_evaluation_confirms_what_it_returns(threat):
    """Every break holds at the returned point, which the audit finds in order."""
    threat = dataclasses.replace(threat, bounds=BOUNDS)
    x, y = problem(jnp.bfloat16)
    report = jr.evaluate(
        model, x, y, attack=jr.PGD(num_steps=10), threat=threat, key=KEY, progress=False
    )
    assert report.x_adv.dtype == jnp.bfloat16
    assert_feasible(report.x_adv, x, threat)
    for name in ("outside_ball", "outside_bounds", "not_confirmed"):
        assert report.audit[name] == 0, name
    is_right = np.asarray(model(report.x_adv).argmax(-1) == y)
    np.testing.assert_array_equal(report.is_robust, is_right)
    assert 0 < is_right.mean() < 1


def test_it_is_the_same_inside_jit():
    """Law 4, in half precision: XLA may not skip the rounding."""
    x, y = problem(jnp.bfloat16)
    attack, threat = jr.FGSM(), jr.L2(0.2)

    def run(x):
        return attack(model, x, y, threat=threat)

    np.testing.assert_array_equal(jax.jit(run)(x), run(x))


@pytest.mark.parametrize("dtype", HALF)
def test_nearest_is_the_conversion(dtype):
    """Also below the normal range of float16, and inside a compiled program."""
    sizes = np.float32([0, 1, 0.7, 1e-3, 6e-5, 3e-6, 1e-7, 1e-8, 300.3])
    values = jnp.concatenate([sizes, -sizes])
    there_and_back = np.asarray(values).astype(dtype).astype(np.float32)
    ours = jax.jit(rounding.nearest, static_argnums=1)(values, dtype)
    np.testing.assert_array_equal(ours, there_and_back)
    slope = jax.grad(lambda x: jnp.sum(narrow.Rounding(lambda x: 3 * x, dtype)(x)))
    np.testing.assert_array_equal(slope(values), jnp.full(values.shape, 3.0))


@pytest.mark.parametrize("kind", [jr.Linf, jr.L2, jr.L1])
@pytest.mark.parametrize("dtype", HALF)
def test_projection_of_half_precision_is_feasible(kind, dtype):
    """A threat's own `project` keeps to the ball in the type that it is given."""
    x = X.astype(dtype)
    threat = kind(0.3, bounds=BOUNDS)
    x_adv = (X + jax.random.normal(KEY, X.shape)).astype(dtype)
    found = threat.project(x_adv, x)
    assert_feasible(found, x, threat)
    most = np.linalg.norm(np.float64(found) - np.float64(x), threat.order, axis=-1)
    assert (most > 0.8 * threat.eps).all()
    assert math.isclose(float(threat.distance(x, x).max()), 0)
