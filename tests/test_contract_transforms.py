"""The laws of the design, continued: transformations, devices, keys, hard models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxrobust as jr

pytestmark = [pytest.mark.thin, pytest.mark.usefixtures("no_key_reuse")]

BATCH, FEATURES = 4, 6
THREATS = {"linf": jr.Linf(0.1), "l2": jr.L2(0.4), "l1": jr.L1(0.8)}
ATTACKS = {
    "pgd": jr.PGD(num_steps=3, momentum=0.9),
    "adam": jr.PGD(num_steps=3, optimizer=optax.adam(0.05)),
    "fab": jr.FAB(num_steps=3),
    "restarts": jr.Restarts(jr.PGD(num_steps=3), 2),
    "worst_of": jr.WorstOf((jr.FGSM(), jr.PGD(num_steps=3))),
    "square": jr.Square(num_queries=6),
    "spsa": jr.SPSA(num_steps=2, num_samples=4, chunk_size=2),
    "apgd": jr.APGD(num_steps=3),
}
each_threat = pytest.mark.parametrize("threat", THREATS.values(), ids=THREATS)
# The same arithmetic in another program: XLA may round differently, three smooth steps
# amplify that little.
CLOSE = dict(rtol=0, atol=2e-5)

WEIGHTS = 2 * jax.random.normal(jax.random.key(3), (FEATURES, 3))
X = jax.random.uniform(jax.random.key(1), (BATCH, FEATURES))
Y = jnp.array([0, 1, 2, 0])


def model(x):
    return jnp.sin(3 * jnp.matmul(x, WEIGHTS.astype(x.dtype)))


OTHERS = [
    ("pgd", "l2"),
    ("pgd", "l1"),
    ("fab", "l2"),
    ("adam", "l2"),
    ("spsa", "l2"),
    ("apgd", "l2"),
    ("restarts", "l1"),
]
OTHERS += [("square", "l1"), ("worst_of", "l2")]


def keys():
    return jax.random.split(jax.random.key(0), BATCH)


@pytest.mark.parametrize(
    "attack, threat",
    [(ATTACKS["pgd"], THREATS["linf"]), (ATTACKS["apgd"], THREATS["l1"])]
    + [pytest.param(ATTACKS[a], THREATS[t], marks=pytest.mark.slow) for a, t in OTHERS],
)
def test_jit_shard_map_and_a_sharded_batch_equal_eager(attack, threat):
    """Laws 4 and 5: the number of devices changes nothing, and the result is sharded."""

    def run(x, y, keys):
        return attack(model, x, y, threat=threat, key=keys)

    eager = run(X, Y, keys())
    np.testing.assert_allclose(jax.jit(run)(X, Y, keys()), eager, **CLOSE)
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("batch")
    mapped = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec))
    np.testing.assert_allclose(mapped(X, Y, keys()), eager, **CLOSE)
    sharded = run(*jax.device_put((X, Y, keys()), NamedSharding(mesh, spec)))
    np.testing.assert_allclose(sharded, eager, **CLOSE)
    assert len(sharded.sharding.device_set) == 4


@pytest.mark.parametrize("name", ["pgd", "fab"])
def test_a_batch_on_an_explicit_mesh(name):
    """Where types name mesh axes, rows cannot be cut off and the batch axis not merged."""
    if name == "pgd" and jax.__version_info__ >= (0, 12):
        pytest.skip(
            "optax 0.2.8 takes entry 0 of each row in its cross-entropy, of which JAX "
            "0.12 cannot shard the gradient"
        )

    def logits_fn(x):
        return model(x.reshape(len(x), -1))

    x = jax.random.uniform(jax.random.key(1), (32, 1, 1, FEATURES))
    y, attack, threat = jnp.arange(32) % 3, ATTACKS[name], THREATS["linf"]
    eager = attack(logits_fn, x, y, threat=threat, key=jax.random.key(0))
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Explicit,))
    x, y = jax.device_put((x, y), NamedSharding(mesh, PartitionSpec("batch")))
    sharded = attack(logits_fn, x, y, threat=threat, key=jax.random.key(0))
    np.testing.assert_allclose(sharded, eager, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "threat",
    [
        THREATS["linf"],
        pytest.param(THREATS["l2"], marks=pytest.mark.slow),
        pytest.param(THREATS["l1"], marks=pytest.mark.slow),
    ],
    ids=THREATS,
)
def test_vmap_over_eps_keys_and_targets(threat):
    """Law 4: curves over eps, restarts over keys, attacks on every class at once."""
    attack = jr.PGD(num_steps=3, loss=jr.losses.targeted(jr.losses.cross_entropy))
    kind = type(threat)

    def run(eps, seed, target):
        return attack(model, X, target, threat=kind(eps), key=jax.random.key(seed))

    radii, seeds = jnp.array([0.0, 0.1, 0.2]), jnp.array([3, 4, 5])
    targets = jnp.array([[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2]])
    whole = jax.vmap(run)(radii, seeds, targets)
    for i in range(3):
        one = run(float(radii[i]), int(seeds[i]), targets[i])
        np.testing.assert_allclose(whole[i], one, **CLOSE)


def test_attack_inside_scan():
    """Law 5: an attack in the body of a training loop that `scan` runs."""
    attack = jr.PGD(num_steps=3)

    def body(scale, key):
        x_adv = attack(lambda x: scale * model(x), X, Y, threat=jr.L2(0.4), key=key)
        return scale, x_adv

    split = jax.random.split(jax.random.key(7), 2)
    _, together = jax.jit(lambda keys: jax.lax.scan(body, jnp.float32(1.0), keys))(
        split
    )
    for i, key in enumerate(jax.random.split(jax.random.key(7), 2)):
        alone = attack(model, X, Y, threat=jr.L2(0.4), key=key)
        np.testing.assert_allclose(together[i], alone, **CLOSE)


def log_of_negative(x):
    return jnp.log(x[:, :3] - 0.5)


HARD = {
    "constant": lambda x: 0 * x[:, :3],
    "saturated": lambda x: 1e4 * x[:, :3],
    "flat": lambda x: 1e4 * jax.nn.one_hot(jnp.zeros(len(x), int), 3),
    "tiny_gradient": lambda x: 1e-30 * x[:, :3],
    "huge_gradient": lambda x: 1e20 * x[:, :3],
    "not_finite": log_of_negative,
}


def hard_model(number, x):
    """All of them in one program, which saves compiling."""
    return jax.lax.switch(number, list(HARD.values()), x)


LOSSES = [jr.losses.cross_entropy, jr.losses.margin, jr.losses.dlr]
PGD_2 = functools.partial(jr.PGD, num_steps=2, momentum=1.0)
HARD_PAIRS = [(PGD_2, loss) for loss in LOSSES]
HARD_PAIRS += [(functools.partial(jr.APGD, num_steps=5), jr.losses.dlr)]


@pytest.mark.parametrize("kind, loss", HARD_PAIRS)
@each_threat
def test_no_nan_from_hard_models(kind, loss, threat):
    """Law 6: zero, tiny, huge and undefined gradients leave a feasible point."""
    attack = kind(loss=loss)
    for number, name in enumerate(HARD):
        fn = jax.tree_util.Partial(hard_model, jnp.asarray(number))
        x_adv = attack(fn, X, Y, threat=threat, key=jax.random.key(0))
        assert np.isfinite(x_adv).all() and (x_adv >= 0).all() and (x_adv <= 1).all()
        # One ulp of each of the six coordinates.
        assert (threat.distance(x_adv, X) <= threat.eps + 2e-6).all(), name


@pytest.mark.parametrize("loss", LOSSES)
def test_two_classes(loss):
    """Law 6: DLR needs three classes and falls back to the margin for two."""
    attack = jr.PGD(num_steps=2, loss=loss)
    x_adv = attack(
        lambda x: x[:, :2], X, Y % 2, threat=jr.Linf(0.1), key=jax.random.key(0)
    )
    assert np.isfinite(x_adv).all() and (x_adv != X).any()


@pytest.mark.parametrize("name", ["linf", "l2", "l1"])
def test_bfloat16_inputs(name):
    """Law 6: half precision stays half precision, feasible to one ulp (2^-8)."""
    attack = ATTACKS["adam" if name == "linf" else "pgd"]
    threat = THREATS[name]
    check_bfloat16(attack, threat)
    check_bfloat16(ATTACKS["apgd"], threat)


def check_bfloat16(attack, threat):
    x = X.astype(jnp.bfloat16)
    x_adv = attack(model, x, Y, threat=threat, key=jax.random.key(0))
    assert x_adv.dtype == jnp.bfloat16 and jnp.isfinite(x_adv).all()
    slack = 0 if isinstance(threat, jr.Linf) else FEATURES * 2**-8
    assert (threat.distance(x_adv, x) <= jnp.float32(threat.eps) + slack).all()


@pytest.mark.parametrize("name", ["pgd", "restarts", "worst_of"])
def test_the_key_decides(name):
    """Law 8: equal keys give equal results bitwise, other keys others."""

    def run(seed):
        key = jax.random.key(seed)
        attack = jr.PGD(num_steps=3, keep_best=False, rel_step_size=0.1)
        attack = {"restarts": jr.Restarts(attack, 2), "pgd": attack}.get(
            name, jr.WorstOf((attack,))
        )
        return attack(model, X, Y, threat=jr.L2(0.4), key=key)

    np.testing.assert_array_equal(run(0), run(0))
    assert (run(0) != run(1)).any(axis=-1).all()


def test_kinds_of_keys():
    """Law 8: typed, raw and per-example keys mean the same draws."""
    attack, threat = jr.PGD(num_steps=3), jr.Linf(0.1)
    typed = attack(model, X, Y, threat=threat, key=jax.random.key(5))
    raw = attack(model, X, Y, threat=threat, key=jax.random.PRNGKey(5))
    split = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.arange(4))
    each = attack(model, X, Y, threat=threat, key=split)
    np.testing.assert_array_equal(typed, raw)
    np.testing.assert_array_equal(typed, each)


def test_a_key_is_welcome_where_none_is_needed():
    """Law 8: code that loops over attacks need not know which of them draw."""
    attack = jr.FGSM()
    with_key = attack(model, X, Y, threat=jr.Linf(0.1), key=jax.random.key(0))
    np.testing.assert_array_equal(with_key, attack(model, X, Y, threat=jr.Linf(0.1)))


def test_restarts_keep_the_best_of_their_runs():
    """A success beats a failure, then the larger margin: never worse than one run."""
    single = jr.PGD(num_steps=1, rel_step_size=0.2, loss=jr.losses.margin)
    threat = jr.Linf(0.3)
    many = jr.Restarts(single, 5)(model, X, Y, threat=threat, key=keys())
    best = np.asarray(jr.losses.margin(model(many), Y))
    runs = []
    for r in range(5):
        key = jax.vmap(jax.random.fold_in, (0, None))(keys(), r)
        x_adv = single(model, X, Y, threat=threat, key=key)
        runs.append(np.asarray(jr.losses.margin(model(x_adv), Y)))
    np.testing.assert_allclose(
        best, np.max(runs, axis=0), atol=2e-4
    )  # rounding, times 6
