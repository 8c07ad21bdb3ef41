"""The laws of the design: every attack under every threat is held to all of them.

Models here are small and smooth enough that compiling dominates; shapes are shared so
that each attack is compiled once for each threat.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrobust as jr
from tests.counting import count_compilations

pytestmark = [pytest.mark.thin, pytest.mark.usefixtures("no_key_reuse")]

BATCH, FEATURES, CLASSES = 4, 6, 3


def step_back(logits_fn, x, y, *, threat, key=None):
    """A plain function with the signature of an attack."""
    del logits_fn, y, key
    return threat.project(0.9 * x, x)


DECAY = optax.schedules.cosine_decay_schedule(1.0, 20)
ATTACKS = {
    "fgsm": jr.FGSM(),
    "fgsm_rs": jr.FGSM(random_start=True, rel_step_size=1.25),
    "pgd": jr.PGD(num_steps=5),
    "momentum": jr.PGD(num_steps=5, momentum=1.0),
    "adam": jr.PGD(num_steps=5, optimizer=optax.adam(0.05)),
    "schedule": jr.PGD(num_steps=5, rel_step_size=1.0, step_schedule=DECAY),
    "margin": jr.PGD(num_steps=5, loss=jr.losses.margin),
    "dlr": jr.PGD(num_steps=5, loss=jr.losses.dlr),
    "targeted": jr.PGD(num_steps=5, loss=jr.losses.targeted(jr.losses.cross_entropy)),
    "fab": jr.FAB(num_steps=5),
    "last": jr.PGD(num_steps=5, keep_best=False),
    "apgd": jr.APGD(num_steps=5),
    "restarts": jr.Restarts(jr.PGD(num_steps=5), 2),
    "targets": jr.Targets(jr.APGD(num_steps=5, loss=jr.losses.dlr_targeted)),
    "odi": jr.Targets(jr.ODI(num_odi_steps=1, num_steps=4)),
    "worst_of": jr.WorstOf((jr.FGSM(), jr.PGD(num_steps=5), step_back)),
    "square": jr.Square(num_queries=8),
    "spsa": jr.SPSA(num_steps=3, num_samples=4),
}
MASK = np.array([1, 1, 1, 0, 1, 1])
THREATS = {
    "linf": jr.Linf(0.1),
    "linf_free": jr.Linf(0.1, bounds=None),
    "linf_mask": jr.Linf(0.1, mask=MASK),
    "l2": jr.L2(0.4),
    "l2_free": jr.L2(0.4, bounds=None),
    "l2_mask": jr.L2(0.4, mask=MASK),
    "l1": jr.L1(0.8),
    "l1_free": jr.L1(0.8, bounds=None),
    "l1_mask": jr.L1(0.8, mask=MASK),
}


class Weighted:
    """|x_adv - x| <= eps * weight: a user's own threat, neither pytree nor l_p ball."""

    order, bounds, mask = None, (0.0, 1.0), None
    weight = np.array([[1, 0.5, 2, 1, 1, 0.25]], np.float32)

    def __init__(self, eps):
        self.eps = eps

    def project(self, x_adv, x):
        reach = self.eps * self.weight
        low, high = jnp.maximum(x - reach, 0), jnp.minimum(x + reach, 1)
        return jnp.clip(x_adv, low, high).astype(x.dtype)

    def steepest(self, grad, x, step_size):
        step_size = jnp.broadcast_to(jnp.asarray(step_size), x.shape[:1])[:, None]
        step = step_size * self.weight * jnp.sign(grad)
        return jnp.clip(step, -x, 1 - x).astype(x.dtype)

    def sample(self, keys, x):
        def draw(key):
            key = jax.random.fold_in(key, 0)  # the caller's are not used up
            return jax.random.uniform(key, x.shape[1:], minval=-1.0)

        noise = self.eps * self.weight * jax.vmap(draw)(keys)
        return self.project((x + noise).astype(x.dtype), x)

    def distance(self, x_adv, x):
        return jnp.max(jnp.abs(x_adv - x) / self.weight, axis=-1)

    def with_eps(self, eps):
        return Weighted(eps)


THREATS["own"] = Weighted(0.1)
KEY = jax.random.key(0)
NORMS = ("linf", "l2", "l1")
VARIANTS = (
    "schedule",
    "margin",
    "dlr",
    "targeted",
    "last",
    "targets",
)  # differ in small things
# Each attack with each norm, the variants with one; the other threats with one attack.
PAIRS = [(a, t) for a in ATTACKS for t in NORMS if a not in VARIANTS or t == "l2"]
PAIRS += [("pgd", t) for t in THREATS if t not in NORMS]
NEED_A_NORM = ("fab", "square")
PAIRS += [(a, "own") for a in ATTACKS if a not in (*NEED_A_NORM, *VARIANTS, "pgd")]
PAIRS += [(a, "l2_mask") for a in ("apgd", "square", "spsa")]
# One norm in the default run: what is made of other steps, and what compiles long.
ONE_NORM = ("momentum", "adam", "fgsm_rs", "restarts", "worst_of", "fab", "spsa")
each_pair = pytest.mark.parametrize(
    "attack, threat",
    [
        pytest.param(
            ATTACKS[a],
            THREATS[t],
            id=f"{a}-{t}",
            marks=[pytest.mark.slow] * (a in ONE_NORM and t != "l2"),
        )
        for a, t in PAIRS
    ],
)
each_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
each_threat = pytest.mark.parametrize("threat", THREATS.values(), ids=THREATS)


def make_mlp(seed=0, classes=CLASSES):
    k1, k2 = jax.random.split(jax.random.key(seed))
    params = (
        2 * jax.random.normal(k1, (FEATURES, 8)),
        2 * jax.random.normal(k2, (8, classes)),
    )
    return jax.tree_util.Partial(mlp, params)


def mlp(params, x):
    hidden = jnp.matmul(x - 0.5, params[0].astype(x.dtype))
    return jnp.matmul(jnp.tanh(hidden), params[1].astype(x.dtype))


MODEL = make_mlp()
X = jax.random.uniform(jax.random.key(1), (BATCH, FEATURES))
# Corners of the data bounds take part too.
X = X.at[0, 0].set(0.0).at[1, 1].set(1.0)
Y = jnp.array([1, 2, 2, 0])  # the model is right about two of them


@each_pair
def test_ball_bounds_and_mask(attack, threat):
    """Law 1: feasible, exactly for l_inf, to an ulp and a relative 1e-6 otherwise."""
    x_adv = attack(MODEL, X, Y, threat=threat, key=KEY)
    assert x_adv.shape == X.shape and x_adv.dtype == X.dtype
    if isinstance(threat, jr.Linf):
        assert np.abs(np.asarray(x_adv) - X).max() <= np.float32(threat.eps)
    else:  # numbers below 2: one ulp is at most 1.2e-7
        slack = 1e-6 * threat.eps + FEATURES * 1.2e-7
        assert threat.distance(x_adv, X).max() <= threat.eps + slack
    if threat.bounds is not None:
        assert (x_adv >= 0).all() and (x_adv <= 1).all()
    if threat.mask is not None:
        np.testing.assert_array_equal(x_adv[:, MASK == 0], X[:, MASK == 0])
    assert (x_adv != X).any()


@pytest.mark.parametrize("name", NEED_A_NORM)
def test_who_needs_a_norm_says_so(name):
    """Law 9: not an attack with windows or hyperplanes of another norm."""
    with pytest.raises(TypeError, match=r"order.*use another attack"):
        ATTACKS[name](MODEL, X, Y, threat=THREATS["own"], key=KEY)


@each_pair
def test_eps_zero_returns_x(attack, threat):
    """Law 1: a ball of radius 0 leaves `x` as it is."""
    nothing = threat.with_eps(0.0)
    np.testing.assert_array_equal(attack(MODEL, X, Y, threat=nothing, key=KEY), X)


LINEAR = jax.random.normal(jax.random.key(5), (FEATURES, 2))
LINEAR_Y = jnp.array([0, 1, 1, 0])


def linear(x):
    return jnp.matmul(x, LINEAR, precision="highest")


def linear_gap(attack, threat):
    """Return how far an attack's margin stays below the exact worst case, relatively."""
    bias = jnp.zeros(2)
    _, best = jr.certify.linear_worst_case(LINEAR, bias, X, LINEAR_Y, threat=threat)
    x_adv = attack(linear, X, LINEAR_Y, threat=threat, key=KEY)
    reached = jr.losses.margin(linear(x_adv), LINEAR_Y)
    clean = jr.losses.margin(linear(X), LINEAR_Y)
    return np.asarray((best - reached) / (best - clean))


@each_threat
def test_fgsm_is_exact_on_a_linear_model(threat):
    """Law 2: one steepest step from `x` is the optimum, for every norm, box and mask."""
    gap = linear_gap(jr.FGSM(), threat)
    assert (np.abs(gap) < 1e-5).all()  # float32 rounding of the margin


@pytest.mark.parametrize("name", ["linf", "l2_mask", "l1"])
def test_pgd_without_random_start_is_exact_on_a_linear_model(name):
    """Law 2: the first step of length eps reaches the optimum, `keep_best` keeps it."""
    threat = THREATS[name]
    attack = jr.PGD(num_steps=3, rel_step_size=1.0, random_start=False)
    assert (np.abs(linear_gap(attack, threat)) < 1e-5).all()


@pytest.mark.parametrize("name", ["linf", "l2_free", "l2", "l1"])
def test_pgd_approaches_the_optimum_of_a_linear_model(name):
    """Law 2 from a random start: exact for l_inf, approached for l2 and l1.

    The l_inf maximiser is a corner, which steps of total length above 2 eps reach. For l2
    and l1 in a box the step bends along the walls, so that its fixed point is off by
    about the length of a step: the steps have to decay for the gap to close.
    """
    decay = optax.schedules.cosine_decay_schedule(1.0, 60)
    attack = jr.PGD(num_steps=60, rel_step_size=0.5, step_schedule=decay)
    gap = linear_gap(attack, THREATS[name])
    tolerance = {"linf": 1e-5, "l2_free": 1e-4}.get(name, 1e-2)
    assert (gap > -1e-5).all() and (gap < tolerance).all(), gap


@pytest.mark.parametrize("name", ["l2", "l2_free", "l1", "l1_mask"])
def test_default_pgd_reaches_the_optimum_of_a_linear_model(name):
    """Law 2 with the default steps, which decay; steps of one length left up to 7%."""
    gap = linear_gap(jr.PGD(), THREATS[name])
    assert (gap > -1e-5).all() and (gap < 0.01).all(), gap


def test_the_default_steps_of_linf_have_one_length():
    """Published tables rest on it: 2.5 eps / num_steps throughout."""
    default = jr.PGD(num_steps=5)
    same = jr.PGD(num_steps=5, rel_step_size=2.5 / 5)
    settings = dict(threat=THREATS["linf"], key=KEY)
    np.testing.assert_array_equal(
        default(MODEL, X, Y, **settings), same(MODEL, X, Y, **settings)
    )


@each_pair
def test_examples_are_independent(attack, threat):
    """Law 3: neighbours and order do not matter, bitwise, given per-example keys."""
    keys = jax.random.split(jax.random.key(0), BATCH)
    whole = attack(MODEL, X, Y, threat=threat, key=keys)
    order = jnp.array([2, 0, 3, 1])
    moved = attack(MODEL, X[order], Y[order], threat=threat, key=keys[order])
    np.testing.assert_array_equal(moved, whole[order])
    others = attack(
        MODEL,
        X.at[1:].set(0.5),
        Y.at[1:].set(0),
        threat=threat,
        key=keys.at[1:].set(jax.random.split(jax.random.key(9), BATCH - 1)),
    )
    np.testing.assert_array_equal(others[0], whole[0])


@pytest.mark.parametrize("name", ["fgsm_rs", "pgd", "worst_of", "square", "spsa"])
def test_one_key_serves_any_batch_size(name):
    """Law 3: example i draws from fold_in(key, i), whatever the size of the batch.

    Another batch size is another program, which XLA may round differently; five steps
    on this smooth model amplify that little.
    """
    attack, threat = ATTACKS[name], THREATS["l2"]
    small = attack(MODEL, X[:2], Y[:2], threat=threat, key=KEY)
    large = attack(MODEL, X, Y, threat=threat, key=KEY)
    np.testing.assert_allclose(small, large[:2], atol=2e-5)


@each_attack
def test_new_numbers_compile_nothing(attack):
    """Law 4: a second call, a new eps and a new key run the compiled program."""
    calls = [
        dict(threat=jr.L2(0.4), key=jax.random.key(1)),
        dict(threat=jr.L2(0.4), key=jax.random.key(1)),
        dict(threat=jr.L2(0.3), key=jax.random.key(2)),
    ]
    attack(MODEL, X, Y, **calls[0])
    with count_compilations() as events:
        for settings in calls[1:]:
            attack(MODEL, X, Y, **settings)
    assert not events


@pytest.mark.parametrize("name", ["step_size", "rel_step_size", "momentum"])
def test_new_settings_compile_nothing(name):
    """Law 4: the numbers of an attack are traced."""

    def run(value):
        attack = jr.PGD(num_steps=5, **{name: value})
        return attack(MODEL, X, Y, threat=jr.Linf(0.1), key=KEY)

    run(0.5)
    with count_compilations() as events:
        run(0.1)
    assert not events
    assert (run(0.9) != run(0.01)).any()


def test_a_new_model_of_the_same_shape_compiles_nothing():
    """Law 4: the leaves of a `Partial` are arguments; a training loop compiles once."""
    attack = jr.FGSM()
    models = [make_mlp(1), make_mlp(2)]
    first = attack(models[0], X, Y, threat=jr.L2(0.4))
    with count_compilations() as events:
        second = attack(models[1], X, Y, threat=jr.L2(0.4))
    assert not events
    assert (first != second).any()


@pytest.mark.parametrize(
    "name, norm",
    [
        ("fgsm", "linf"),
        ("pgd", "l1"),
        pytest.param("restarts", "l2", marks=pytest.mark.slow),
        pytest.param("square", "l1", marks=pytest.mark.slow),
        ("spsa", "l2"),
    ],
)
def test_no_gradient_leaks_through_the_attack(name, norm):
    """Law 7 (Danskin): the attack is a constant of the outer minimisation."""
    attack, threat = ATTACKS[name], THREATS[norm]

    def total(params, x):
        model = jax.tree_util.Partial(mlp, params)
        return attack(model, x, Y, threat=threat, key=KEY).sum()

    for gradient in jax.tree.leaves(jax.grad(total, (0, 1))(MODEL.args[0], X)):
        assert (gradient == 0).all()
