"""FAB against a NumPy port, closed forms, and what the interface promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust.attacks.fab import boundaries
from tests.reference import fab as reference

pytestmark = [pytest.mark.thin, pytest.mark.usefixtures("no_key_reuse")]

BATCH, FEATURES, HIDDEN, CLASSES = 6, 12, 16, 4
NORM = {"linf": np.inf, "l2": 2, "l1": 1}
KIND = {"linf": jr.Linf, "l2": jr.L2, "l1": jr.L1}
each_norm = pytest.mark.parametrize("norm", NORM)
each_form = pytest.mark.parametrize("targeted", [True, False], ids=["fab_t", "fab"])


def make_weights(seed):
    rng = np.random.default_rng(seed)
    shapes = (FEATURES, HIDDEN), (HIDDEN, CLASSES)
    return tuple(np.float32(rng.normal(size=shape)) for shape in shapes)


WEIGHTS = make_weights(0)
X = np.random.default_rng(1).uniform(size=(BATCH, FEATURES)).astype(np.float32)


def mlp(weights, x):
    hidden = jnp.matmul(x - 0.5, weights[0].astype(x.dtype), precision="highest")
    return jnp.matmul(jnp.tanh(hidden), weights[1].astype(x.dtype), precision="highest")


MODEL = jax.tree_util.Partial(mlp, tuple(map(jnp.asarray, WEIGHTS)))
LOGITS = np.asarray(MODEL(X))
Y = jnp.asarray(LOGITS.argmax(-1))
TARGETS = jnp.asarray(np.argsort(LOGITS, -1)[:, -2])


def y_of(targeted, y=Y, targets=TARGETS):
    return (y, targets) if targeted else y


def numpy_model(z):
    """Return the logits and their Jacobian at one point, in float64."""
    first, second = (np.float64(w) for w in WEIGHTS)
    hidden = np.tanh((z - 0.5) @ first)
    return hidden @ second, (second.T * (1 - hidden**2)) @ first.T


@jax.jit
def run_steps(attack, model, x, y, start, threat, keys):
    state = attack.init(x, y, threat=threat, keys=keys)
    state = state._replace(x_adv=state.x_adv if start is None else start)

    def body(state, _):
        state = attack.step(model, state, threat=threat)
        return state, state

    return jax.lax.scan(body, state, length=attack.num_calls)[1]


def states(attack, model, x, y, threat, start=None):
    """Return the states after each step, stacked; the start may be given."""
    return run_steps(attack, model, jnp.asarray(x), y, start, threat, None)


@each_form
@each_norm
@pytest.mark.parametrize("from_x", [True, False], ids=["from_x", "from_elsewhere"])
def test_iterates_equal_the_reference(norm, targeted, from_x):
    """20 steps from the same start, also in the interior of another class."""
    noise = np.random.default_rng(2).uniform(-0.3, 0.3, size=X.shape)
    start = X if from_x else np.float32(np.clip(X + noise, 0, 1))
    attack = jr.FAB(num_steps=20, targeted=targeted)
    ours = states(attack, MODEL, X, y_of(targeted), KIND[norm](0.1), jnp.asarray(start))
    for i in range(BATCH):
        label, target = int(Y[i]), int(TARGETS[i])

        def linearize(z, label=label, target=target):
            if targeted:
                return reference.towards_target(*numpy_model(z), label, target)
            return reference.towards_any(*numpy_model(z), label)

        iterates, _, distance = reference.fab(
            np.float64(X[i]),
            label,
            linearize,
            lambda z: numpy_model(z)[0].argmax(),
            NORM[norm],
            np.float64(start[i]),
            20,
        )
        # Float32 against float64, amplified by 20 steps.
        np.testing.assert_allclose(ours.x_adv[:, i], iterates, rtol=0, atol=1e-4)
        # Also points that the reference passes on its way back count as found.
        assert ours.nearest_distance[-1, i] <= distance + 1e-4


def ratio_on_a_linear_model(num_steps, alpha_max=0.1, eta=1.05, beta=0.9):
    """Return the best distance in units of the exact one: FAB in one dimension.

    From t of the way, d1 leads 1 - t further and d2 the whole way.
    """
    t, best = 0.0, np.inf
    for _ in range(num_steps):
        alpha = min(abs(1 - t) / (abs(1 - t) + 1), alpha_max)
        t = (1 - alpha) * (t + eta * (1 - t)) + alpha * eta
        if t > 1:
            t, best = beta * t, min(best, t)
    return best


def linear(w, x):
    return jnp.matmul(x, w, precision="highest")


@pytest.mark.parametrize(
    "norm, classes", [("linf", 2), ("l2", 2), ("l2", 4), ("l1", 2)]
)
def test_distance_on_a_linear_model(norm, classes):
    """|margin| / ||w||_dual, the least over the classes, times what eta leaves over."""
    w = np.random.default_rng(3).normal(size=(FEATURES, classes)).astype(np.float32)
    logits = np.float64(X) @ w
    y = logits.argmax(-1)
    difference = np.float64(w).T[None] - np.float64(w).T[y][:, None]
    dual = np.linalg.norm(difference, reference.DUAL[NORM[norm]], axis=-1)
    gaps = logits.max(-1, keepdims=True) - logits
    exact = np.where(gaps > 0, gaps, np.inf) / np.where(dual > 0, dual, 1)
    threat = KIND[norm](1.0, bounds=None)
    model = jax.tree_util.Partial(linear, jnp.asarray(w))
    final = states(jr.FAB(num_steps=10), model, X, jnp.asarray(y), threat)
    nearest = np.float64(final.nearest[-1])
    ratio = np.linalg.norm(nearest - X, NORM[norm], axis=-1) / exact.min(-1)
    expected = ratio_on_a_linear_model(10)
    assert 1 < expected < 1.01  # with eta = 1.05: within one percent of the boundary
    if classes == 2:
        np.testing.assert_allclose(ratio, expected, rtol=1e-4)  # float32
    else:  # the nearest class may change on the way
        assert (ratio > 1).all() and (ratio < 1.02).all()


@pytest.mark.parametrize(
    "norm, targeted", [("linf", True), ("l2", False), ("l1", True)]
)
def test_best_is_feasible_and_success_means_within_eps(norm, targeted):
    """`nearest` where it is within eps, bit for bit, else its projection."""
    attack, y = jr.FAB(num_steps=20, targeted=targeted), y_of(targeted)
    all_found = states(attack, MODEL, X, y, KIND[norm](1e3))
    distances = np.asarray(all_found.nearest_distance[-1])
    assert np.isfinite(distances).all() and all_found.best_broken[-1].all()
    threat = KIND[norm](float(np.median(distances)))  # for one half of the examples
    final = jax.tree.map(lambda leaf: leaf[-1], states(attack, MODEL, X, y, threat))
    within = distances <= threat.eps
    np.testing.assert_array_equal(final.best_broken, within)
    np.testing.assert_array_equal(final.nearest, all_found.nearest[-1])
    np.testing.assert_array_equal(final.best[within], final.nearest[within])
    projected = threat.project(final.nearest, jnp.asarray(X))
    # Another program: an ulp.
    np.testing.assert_allclose(final.best[~within], projected[~within], atol=1.2e-7)
    wrong = np.asarray(MODEL(final.best)).argmax(-1) != Y
    assert wrong[within].all() and 0 < within.sum() < BATCH
    # Another program, which XLA may round differently.
    called = attack(MODEL, X, y, threat=threat)
    np.testing.assert_allclose(called, final.best, rtol=0, atol=1e-5)


@each_norm
def test_mask_and_bounds_hold_for_the_iterates_too(norm):
    """Frozen pixels stay to the last bit, and the search goes on in the others."""
    mask = np.arange(FEATURES) % 3 > 0
    threat = KIND[norm](0.1, bounds=(0.0, 1.0), mask=mask)
    found = states(jr.FAB(num_steps=10), MODEL, X, Y, threat)
    for points in (found.x_adv, found.nearest, found.best):
        np.testing.assert_array_equal(
            points[..., ~mask], np.tile(X, (10, 1, 1))[..., ~mask]
        )
        assert (points >= 0).all() and (points <= 1).all()
    assert np.isfinite(found.nearest_distance[-1]).sum() > BATCH / 2


def test_what_is_misclassified_is_returned_as_it_is():
    """Its nearest adversarial point is itself, at distance 0."""
    y = (Y + 1) % CLASSES
    final = states(jr.FAB(num_steps=2), MODEL, X, y, jr.L2(0.1))
    np.testing.assert_array_equal(final.best[-1], X)
    assert (final.nearest_distance[-1] == 0).all() and final.best_broken[-1].all()


@each_norm
def test_random_start(norm):
    """Within eps / 2, another for each key, none without one."""
    attack, threat = jr.FAB(num_steps=3, random_start=True), KIND[norm](0.2)
    starts = [
        attack.init(
            X, Y, threat=threat, keys=jax.random.split(jax.random.key(k), BATCH)
        )
        for k in (0, 1)
    ]
    for start in starts:
        distance = threat.distance(start.x_adv, X)
        assert (distance > 0).all() and (distance <= 0.1 + 1e-6).all()
    assert (starts[0].x_adv != starts[1].x_adv).any(-1).all()
    assert attack.needs_key and not jr.FAB().needs_key
    with pytest.raises(ValueError, match="needs a key"):
        attack(MODEL, X, Y, threat=threat)


@each_form
def test_restarts(targeted):
    """Random restarts break at least what one of them breaks."""
    y, threat = y_of(targeted), jr.Linf(0.15)
    attack = jr.FAB(num_steps=3, targeted=targeted, random_start=True)
    keys = jax.random.split(jax.random.key(0), BATCH)
    x_adv = jr.Restarts(attack, 3)(MODEL, X, y, threat=threat, key=keys)
    first = jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
    one = attack(MODEL, X, y, threat=threat, key=first)
    broken, by_one = (MODEL(points).argmax(-1) != Y for points in (x_adv, one))
    assert (broken >= by_one).all() and by_one.any()
    assert (threat.distance(x_adv, X) <= np.float32(0.15)).all()


HARD = {
    "constant": lambda x: 0 * x[:, :3],
    "saturated": lambda x: 1e4 * x[:, :3],
    "flat": lambda x: 1e4 * jax.nn.one_hot(jnp.zeros(len(x), int), 3),
    "tiny_gradient": lambda x: 1.0 * jnp.arange(3)[None] + 1e-30 * x[:, :3],
    "huge_gradient": lambda x: 1e20 * x[:, :3],
    "not_finite": lambda x: jnp.log(x[:, :3] - 0.5),
}


def hard_model(number, x):
    return jax.lax.switch(number, list(HARD.values()), x)


@each_norm
@pytest.mark.parametrize("targeted, bounds", [(True, (0.0, 1.0)), (False, None)])
def test_no_nan_from_hard_models(norm, targeted, bounds):
    """Zero, tiny, huge and undefined gradients leave a feasible point."""
    threat, attack = (
        KIND[norm](0.2, bounds=bounds),
        jr.FAB(num_steps=3, targeted=targeted),
    )
    y = jnp.arange(BATCH) % 3
    for number, name in enumerate(HARD):
        model = jax.tree_util.Partial(hard_model, jnp.asarray(number))
        found = states(attack, model, X, y_of(targeted, y, (y + 1) % 3), threat)
        for points in (found.x_adv, found.nearest, found.best):
            assert np.isfinite(points).all(), name
        # One ulp of each coordinate.
        assert (threat.distance(found.best[-1], X) <= 0.2 + 3e-6).all(), name


@pytest.mark.parametrize("norm, classes", [("linf", 2), ("l2", 3), ("l1", 2)])
def test_few_classes_in_half_precision(norm, classes):
    """Inputs in bfloat16 stay so; two classes leave one boundary."""
    x = jnp.asarray(X, jnp.bfloat16)
    y = MODEL(x)[:, :classes].argmax(-1)
    threat = KIND[norm](0.4 if norm == "linf" else 2.0)
    x_adv = jr.FAB(num_steps=5)(lambda x: MODEL(x)[:, :classes], x, y, threat=threat)
    assert x_adv.dtype == jnp.bfloat16
    slack = 0 if norm == "linf" else FEATURES * 2**-8  # one ulp of each coordinate
    assert (threat.distance(x_adv, x) <= np.float32(threat.eps) + slack).all()
    # Where logits of 8 bits tie, the search goes on.
    assert (MODEL(x_adv)[:, :classes].argmax(-1) != y).sum() >= BATCH / 2


@pytest.mark.parametrize("targeted", [True, False])
def test_an_offset_of_all_logits(targeted):
    """Logits of 1e5 tie at gaps of 0.004: the search steps over a tie, as over a gap."""
    weights = jax.random.normal(jax.random.key(3), (FEATURES, 3))
    x = jnp.asarray(X)
    found = []
    for offset in (0.0, 1e5):

        def logits(parts, x):
            return jnp.tanh(2 * (x - 0.5)) @ parts[0] + parts[1]

        model = jax.tree_util.Partial(logits, (weights, jnp.float32(offset)))
        y = model(x).argmax(-1)
        nearest = states(
            jr.FAB(num_steps=10, targeted=targeted),
            model,
            X,
            y_of(targeted, y, (y + 1) % 3),
            jr.L2(0.1),
        ).nearest_distance[-1]
        found.append(np.asarray(nearest))
    # The gap of 0.004 is a few thousandths of a step.
    np.testing.assert_allclose(found[1], found[0], rtol=0.1, atol=0.02)


@pytest.mark.slow
def test_many_classes_in_chunks(monkeypatch):
    """Gradients are taken 16 classes at a time, and the nearest is that of all at once."""
    weights = jax.random.normal(jax.random.key(4), (FEATURES, 300))
    x, y = jnp.asarray(X), jnp.asarray(np.arange(BATCH) * 41 % 300)
    threat = jr.L2(3.0)

    def attack():
        # A new function: the number below is no argument of the program.
        model = jax.tree_util.Partial(lambda w, x: jnp.tanh(x) @ w, weights)
        linearise = jax.make_jaxpr(
            lambda x: boundaries.towards_any(model, x, y, threat)
        )
        x_adv = jr.FAB(num_steps=3)(model, x, y, threat=threat)
        return x_adv, f"f32[299,{BATCH},{FEATURES}]" in str(linearise(x))

    in_chunks, is_at_once = attack()
    assert not is_at_once
    monkeypatch.setattr(boundaries, "_AT_ONCE", 299)
    whole, is_at_once = attack()
    assert is_at_once
    np.testing.assert_allclose(in_chunks, whole, atol=1e-5)


def test_cost():
    """One gradient a step towards a target, one for each wrong class otherwise."""
    attack = jr.FAB(num_steps=7, targeted=True)
    assert attack.total_cost() == (7, 7) and attack.cost(5) == (1, 1)
    assert attack.num_calls == 7
    assert jr.FAB().total_cost(5) == (400, 100) and jr.FAB().cost(5) == (4, 1)


def test_misuse():
    """Each message says what to do."""
    with pytest.raises(ValueError, match="at least 1"):
        jr.FAB(num_steps=0)
    with pytest.raises(TypeError, match=r"FAB\(targeted=True\)"):
        jr.fab(MODEL, X, (Y, TARGETS), threat=jr.Linf(0.1))
    with pytest.raises(TypeError, match="takes a pair"):
        jr.fab(MODEL, X, Y, threat=jr.Linf(0.1), targeted=True)

    class Other:
        eps, bounds, mask, order = 0.1, None, None, None

    attack = jr.FAB(num_steps=1)
    with pytest.raises(TypeError, match="use another attack"):
        attack.run(MODEL, jnp.asarray(X), Y, Other(), None)
