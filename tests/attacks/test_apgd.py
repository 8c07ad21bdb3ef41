"""Auto-PGD against an independent port, on linear models, and slot by slot."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust._core import batching
from jaxrobust.attacks.apgd import halving, l1
from tests.reference import apgd as reference

pytestmark = pytest.mark.thin

BATCH, FEATURES, CLASSES = 8, 12, 10
KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = (
    2 * jax.random.normal(KEYS[0], (FEATURES, 16)),
    2 * jax.random.normal(KEYS[1], (16, CLASSES)),
)
X = jax.random.uniform(KEYS[2], (BATCH, FEATURES))
# Corners of the box, so that it is active in the whole ball.
X = X.at[0, :4].set(0.0).at[1, :4].set(1.0)
NOISE = jax.random.normal(KEYS[3], X.shape)
CHECKPOINTS = [22, 41, 57, 70, 80, 87, 93, 99]  # of 100 steps, from 22, -3, at least 6


def mlp(x):
    return jnp.tanh((x - 0.5) @ PARAMS[0]) @ PARAMS[1]


Y = jnp.argmax(mlp(X), -1)
PAIR = (Y, (Y + 1) % CLASSES)
THREATS = {"linf": jr.Linf(0.05), "l2": jr.L2(0.2), "l1": jr.L1(0.5)}
LABELS = {"cross_entropy": Y, "dlr": Y, "dlr_targeted": PAIR}


def evaluate_with(loss, y):
    """Return loss, gradient and misclassification at NumPy points, for the reference."""
    labels = y[0] if isinstance(y, tuple) else y

    @jax.jit
    def evaluate(points):
        def total(points):
            logits = mlp(points)
            values = loss(logits, y)
            return values.sum(), (values, logits.argmax(-1) != labels)

        grad, (values, is_wrong) = jax.grad(total, has_aux=True)(points)
        return values, grad, is_wrong

    return lambda points: tuple(
        np.array(a) for a in evaluate(jnp.asarray(points, jnp.float32))
    )


def trace(attack, y, threat, start):
    """Return the points that the attack evaluates, its step sizes and its last state."""
    state = attack.init(X, y, threat=threat, keys=None, start=start)

    def body(state, _):
        following = attack.step(mlp, state, threat=threat)
        schedule = getattr(following, "schedule", following)
        return following, (state.x_adv, schedule.step_size)

    @jax.jit
    def run(state):
        return jax.lax.scan(body, state, length=attack.num_calls)

    state, (points, step_sizes) = run(state)
    return np.array(points), np.array(step_sizes), state


@pytest.mark.parametrize(
    "norm, loss, eps",
    [
        ("linf", "cross_entropy", 0.05),
        ("l2", "cross_entropy", 0.2),
        ("linf", "dlr_targeted", 0.05),
        ("l2", "dlr_targeted", 0.2),
        # DLR is flat, with a gradient of rounding errors, where the label is not among
        # the first two classes: the ball has to be small.
        ("l2", "dlr", 0.04),
    ],
)
def test_iterates_agree_with_the_reference(norm, loss, eps):
    """The same start and weights: 20 iterates to 1e-4, checkpoints and outcome all along.

    The two differ by float32 rounding (1e-7 a step), which the sign of a gradient near 0
    or a loss compared with itself may amplify in later iterates, not in the first ones.
    """
    threat = dataclasses.replace(THREATS[norm], eps=eps)
    y, loss = LABELS[loss], getattr(jr.losses, loss)
    start = threat.project(X + 5 * eps * NOISE, X)
    expected = reference.apgd(
        evaluate_with(loss, y), np.array(X), np.array(start), eps, norm
    )
    points, step_sizes, state = trace(jr.APGD(loss=loss), y, threat, start)
    np.testing.assert_allclose(points[:21], expected.points[:21], rtol=0, atol=1e-4)
    assert ((points[1:] == 0) & (np.array(X) == 0)).any()  # the box stops some
    np.testing.assert_array_equal(state.best_broken, expected.is_broken)
    # Which example halves at which checkpoint: rounding decides a few of the 64.
    halves = np.diff(step_sizes, axis=0) < 0
    expected_halves = np.diff(expected.step_sizes, axis=0) < 0
    assert (np.flatnonzero(halves.any(1)) + 1).tolist() == CHECKPOINTS
    assert (halves != expected_halves).sum() <= 6
    assert 0 < halves[[c - 1 for c in CHECKPOINTS]].mean() <= 1


@pytest.mark.parametrize("num_stages", [1, 3])
def test_l1_iterates_agree_with_the_reference(num_stages):
    """For l_1, from a start outside the ball; stages of 100 steps, or 29, 29 and 40."""
    threat, loss = THREATS["l1"], jr.losses.cross_entropy
    evaluate, x, start = evaluate_with(loss, Y), np.array(X), np.array(X + NOISE)
    if num_stages == 1:
        attack = jr.APGD(radii=((1.0, 1.0),))
        expected = reference.apgd_l1(evaluate, x, start, 0.5, 100, is_fresh=True)
    else:
        attack = jr.APGD()
        expected = reference.apgd_l1_stages(evaluate, x, start, 0.5, (29, 29, 40))
    points, step_sizes, state = trace(attack, Y, threat, jnp.asarray(start))
    assert (
        len(points) == len(expected.points) == 101
    )  # the last is another one, see below
    np.testing.assert_allclose(points[:21], expected.points[:21], rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        step_sizes[:20], expected.step_sizes[:20], rtol=1e-5, atol=0
    )
    np.testing.assert_array_equal(state.best_broken, expected.is_broken)


@pytest.mark.slow
def test_l1_stages():
    """The stages shrink at the stated steps and share the evaluations."""
    plan = l1.stages(jr.APGD())
    assert plan == l1.Stages((0, 30, 60), (3.0, 2.0, 1.0), (1, 1, 1))
    assert l1.stages(jr.APGD(num_steps=1)).starts[-1] == 1
    assert l1.stages(jr.APGD(radii=((1.0, 1.0),))).periods == (4,)
    threat = THREATS["l1"]
    points, _, state = trace(jr.APGD(), Y, threat, X + NOISE)
    radius = np.abs(points - np.array(X)).sum(-1)
    # Radii to the relative 1e-6 that the threat states and an ulp of each coordinate.
    for evaluations, factor in [((0, 30), 3), ((30, 60), 2), ((60, 101), 1)]:
        assert (radius[slice(*evaluations)] <= factor * 0.5 + 3e-6).all()
        assert (radius[slice(*evaluations)].max() > factor * 0.5 - 1e-3).all()
    assert (threat.distance(state.best, X) <= 0.5 + 3e-6).all()


def schedule_of(losses, num_steps=100, rho=0.75):
    """Return after which evaluations a sequence of losses halves the step."""
    state = halving.init(jnp.ones(1), num_steps)
    top, halved = -np.inf, []
    for step, loss in enumerate(losses):
        top = max(top, loss)
        state, is_halved = halving.check(
            state,
            jnp.array([step]),
            jnp.array([loss], jnp.float32),
            jnp.array([top], jnp.float32),
            rho,
            num_steps,
        )
        if is_halved[0]:
            halved.append(step)
    assert state.step_size[0] == 0.5 ** len(halved)
    return halved


def test_conditions_of_halving():
    """C1 and C2 on losses made for them."""
    rising = np.arange(101.0)
    assert schedule_of(rising) == []
    assert schedule_of(-rising) == CHECKPOINTS  # C1, always
    # After 22 rises the loss falls deep and rises again: C1 is satisfied at 41, but the
    # best loss is still that of the first check, where nothing was halved: C2. At 57
    # C2 is not asked, since the step was halved.
    fall = np.concatenate([rising[:23], -1000 + rising[23:]])
    assert schedule_of(fall) == [41, 70, 87, 99]


@pytest.mark.parametrize("num_rises, is_halved", [(16, True), (17, False)])
def test_share_of_increases(num_rises, is_halved):
    """C1 is at most 75% of 22 = 16.5 increases; the first loss is compared with 0."""
    changes = np.where(np.arange(22) < num_rises, 1.0, -1.0)
    losses = np.concatenate([[50.0], np.cumsum(changes)])  # 50: the start is not asked
    assert (schedule_of(losses) == [22]) is is_halved


def linear(weights, x):
    return jnp.matmul(x, weights, precision="highest")


MASK = np.array([1, 1, 1, 0, 1, 1])


@pytest.mark.parametrize(
    "threat, classes",
    [
        (jr.Linf(0.1), 2),
        (jr.L2(0.4), 2),
        (jr.L1(0.8), 2),
        (jr.Linf(0.1, bounds=None), 3),
        (jr.L2(0.4, mask=MASK), 3),
        (jr.L1(0.8, bounds=None), 3),
    ],
    ids=["linf", "l2", "l1", "linf_free_3", "l2_mask_3", "l1_free_3"],
)
def test_the_optimum_of_a_linear_model(threat, classes):
    """Law 2: the last step is exact there, so that only float32 rounding remains.

    With three classes the largest cross-entropy need not be the largest margin: each
    target by itself is what is linear.
    """
    weights = jax.random.normal(jax.random.key(5), (6, classes))
    x = (
        jax.random.uniform(jax.random.key(1), (4, 6))
        .at[0, 0]
        .set(0.0)
        .at[1, 1]
        .set(1.0)
    )
    y = jnp.array([0, 1, classes - 1, 0])
    model = jax.tree_util.Partial(linear, weights)
    _, best = jr.certify.linear_worst_case(
        weights, jnp.zeros(classes), x, y, threat=threat
    )
    attack = jr.APGD(num_steps=10)
    if classes == 3:
        attack = jr.Targets(jr.APGD(num_steps=10, loss=jr.losses.dlr_targeted))
    x_adv = attack(model, x, y, threat=threat, key=jax.random.key(0))
    reached = jr.losses.margin(model(x_adv), y)
    clean = jr.losses.margin(model(x), y)
    gap = (best - reached) / (best - clean)
    assert (np.abs(gap) < 1e-5).all(), gap


def test_only_the_last_point_is_not_of_the_published_algorithm():
    """The last evaluation for l_inf is a corner of the ball around x, cut by the box."""
    threat = THREATS["linf"]
    points, _, _ = trace(jr.APGD(num_steps=5), Y, threat, threat.project(X + NOISE, X))
    low, high = jnp.maximum(X - 0.05, 0), jnp.minimum(X + 0.05, 1)
    distance = np.minimum(np.abs(points[-1] - low), np.abs(points[-1] - high))
    assert (distance < 1e-6).all()  # an ulp, where the corner is rounded inwards


@pytest.mark.parametrize("norm", THREATS)
def test_start(norm):
    """On the sphere of l_inf and l_2 where no box cuts it; nothing is evaluated."""
    threat = dataclasses.replace(THREATS[norm], bounds=None)
    keys = jax.random.split(jax.random.key(3), BATCH)
    state = jr.APGD().init(X, Y, threat=threat, keys=keys)
    radius = threat.eps * (3 if norm == "l1" else 1)  # the first stage of l_1
    # An ulp of each coordinate; for l_1 N(0, 1) noise of 12 coordinates is far outside.
    np.testing.assert_allclose(threat.distance(state.x_adv, X), radius, atol=3e-6)
    delta = np.round(np.array(state.x_adv - X), 5)
    assert len(np.unique(delta, axis=0)) == BATCH  # every example draws its own
    assert (threat.distance(state.best, X) <= threat.eps + 3e-6).all()


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_examples_at_different_steps_share_a_batch(norm):
    """A slot that is filled again later ends as if it had run alone.

    Bitwise up to another program's rounding, which 12 steps amplify little.
    """
    threat, attack = THREATS[norm], jr.APGD(num_steps=12)
    keys = jax.random.split(jax.random.key(3), BATCH)
    step = jax.jit(lambda state: attack.step(mlp, state, threat=threat))
    fresh = attack.init(X, Y, threat=threat, keys=keys)
    together = fresh
    for _ in range(attack.num_calls):
        together = step(together)
    # Slot 0 starts 5 evaluations after the others.
    is_late = jnp.arange(BATCH) == 0
    late = fresh
    for k in range(attack.num_calls + 5):
        following = step(late)
        late = jax.tree.map(
            lambda new, old, k=k: batching.where(
                jnp.where(is_late, k >= 5, k < attack.num_calls), new, old
            ),
            following,
            late,
        )
    np.testing.assert_allclose(late.best, together.best, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(late.best_broken, together.best_broken)


def test_a_success_is_returned_rather_than_a_larger_loss():
    """With three classes the largest cross-entropy may be classified correctly."""
    attack, threat = jr.APGD(num_steps=20), THREATS["linf"]
    x_adv = attack(mlp, X, Y, threat=threat, key=jax.random.key(0))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(BATCH))
    start = attack.init(X, Y, threat=threat, keys=keys).x_adv
    points, _, state = trace(attack, Y, threat, start)
    is_broken = np.any([mlp(p).argmax(-1) != Y for p in points], axis=0)
    np.testing.assert_array_equal(mlp(x_adv).argmax(-1) != Y, is_broken)
    np.testing.assert_array_equal(state.best_broken, is_broken)
    assert is_broken.any() and not is_broken.all()


@dataclasses.dataclass(frozen=True)
class Cube:
    """A threat of the user's own: no type that the library knows."""

    eps: float
    bounds: None = None
    mask: None = None
    order: None = None

    def project(self, x_adv, x):
        return jr.Linf(self.eps, bounds=None).project(x_adv, x)

    def steepest(self, grad, x, step_size):
        return jr.Linf(self.eps, bounds=None).steepest(grad, x, step_size)

    def sample(self, keys, x):
        return jr.Linf(self.eps, bounds=None).sample(keys, x)

    def distance(self, x_adv, x):
        return jr.Linf(self.eps, bounds=None).distance(x_adv, x)


@pytest.mark.slow
def test_unknown_threats():
    """They use the recipe of l_inf and l_2 with their own steps and projections."""
    attack = jr.APGD(num_steps=5)
    start = X + 0.01
    known = attack.init(X, Y, threat=jr.Linf(0.05, None), keys=None, start=start)
    own = attack.init(X, Y, threat=Cube(0.05), keys=None, start=start)
    for _ in range(2):
        known = attack.step(mlp, known, threat=jr.Linf(0.05, None))
        own = attack.step(mlp, own, threat=Cube(0.05))
    np.testing.assert_array_equal(own.x_adv, known.x_adv)
    keys = jax.random.split(jax.random.key(3), BATCH)
    sampled = attack.init(X, Y, threat=Cube(0.05), keys=keys).x_adv
    assert 0 < Cube(0.05).distance(sampled, X).max() <= 0.05


def test_cost_and_function_form():
    """101 gradients for 100 steps, as the published algorithm; arguments pass through."""
    assert jr.APGD().total_cost() == (101, 0) and jr.APGD().cost(10) == (1, 0)
    settings = dict(threat=jr.Linf(0.05), key=jax.random.key(1))
    x_adv = jr.apgd(mlp, X, Y, num_steps=3, num_restarts=2, **settings)
    expected = jr.Restarts(jr.APGD(num_steps=3), 2)(mlp, X, Y, **settings)
    np.testing.assert_array_equal(x_adv, expected)
    assert "num_restarts" in inspect.signature(jr.apgd).parameters


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(num_steps=0), "whole number"),
        (dict(rho=1.5), "share of steps"),
        (dict(radii=((3.0, 0.5), (2.0, 0.5))), "last factor is 1"),
        (dict(radii=()), "last factor is 1"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        jr.APGD(**settings)
