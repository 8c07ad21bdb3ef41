"""Several threats at once, and the attacks that are for training only."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrobust as jr
from tests.training import reference as ref

KEY = jax.random.key(2)
X, Y = jnp.asarray(ref.X, jnp.float32), jnp.asarray(ref.Y)
MODEL = ref.network(jax.tree.map(jnp.float32, ref.PARAMS))
THREATS = [jr.Linf(0.1, bounds=None), jr.L2(0.19, bounds=None)]
POINTS = [np.array(jr.fgsm(MODEL, X, Y, threat=threat)) for threat in THREATS]
LOSSES = np.stack(
    [ref.cross_entropy(ref.forward(ref.PARAMS, x), ref.Y) for x in POINTS]
)


def test_worst_of():
    """Tramer & Boneh 2019: max of the losses for each example; both win somewhere."""
    objective = jr.training.worst_of(jr.FGSM(), THREATS)
    found = objective.inner(MODEL, X, Y, key=None, step=None)
    worst = LOSSES.argmax(0)
    assert set(worst) == {0, 1}
    np.testing.assert_allclose(found, np.stack(POINTS)[worst, range(8)], atol=1e-6)
    value, _, _ = ref.run(objective)
    np.testing.assert_allclose(value, LOSSES.max(0).mean(), rtol=1e-5)
    assert ref.count_calls(objective) == (1, 2 + 2)


def test_no_array_of_all_points():
    """The worst so far is kept, so that another threat needs no more memory."""
    objective = jr.training.worst_of(ref.shifted, THREATS)
    program = jax.make_jaxpr(lambda: objective.inner(MODEL, X, Y, key=None, step=None))
    assert "f32[8,5]" in str(program()) and "f32[2,8,5]" not in str(program())


def test_average_of():
    """Tramer & Boneh 2019: the mean of the losses, at the points of each attack."""

    def unshifted(logits_fn, x, y, *, threat, key=None):
        return jnp.asarray(2 * ref.X - ref.X_ADV, jnp.float32)

    def formula(params):
        points = ref.X_ADV, 2 * ref.X - ref.X_ADV
        losses = [ref.cross_entropy(ref.forward(params, x), ref.Y) for x in points]
        return np.mean(losses)

    ref.check(jr.training.average_of([ref.shifted, unshifted], THREATS), formula)
    value, _, _ = ref.run(jr.training.average_of(jr.FGSM(), THREATS))
    np.testing.assert_allclose(value, LOSSES.mean(), rtol=1e-5)


def test_an_attack_on_the_clean_logits():
    """One by `kl` is given these, whatever the objective."""
    attack = jr.PGD(num_steps=2, loss=jr.losses.kl)
    objective = jr.training.average_of(attack, THREATS)
    x_adv, _ = objective.inner(MODEL, X, Y, key=KEY, step=None)
    keys = jax.random.fold_in(KEY, 0)
    expected = attack(MODEL, X, MODEL(X), threat=THREATS[0], key=keys)
    np.testing.assert_array_equal(x_adv, expected)
    with pytest.raises(ValueError, match=r"adversarial.*starts at x"):
        jr.training.adversarial(jr.FGSM(loss=jr.losses.kl), ref.FREE)


@pytest.mark.slow
def test_one_of():
    """The points of one of them, as often as was said; only its attack runs."""
    objective = jr.training.one_of(jr.FGSM(), THREATS, [1, 3])

    @jax.jit
    @jax.vmap
    def inner(key):
        return objective.inner(MODEL, X, Y, key=key, step=None)

    found = np.array(inner(jax.random.split(KEY, 200)))
    is_first, is_second = (np.isclose(found, x, atol=1e-6).all((1, 2)) for x in POINTS)
    assert (is_first ^ is_second).all()
    # 150 of 200 are expected, and the standard deviation is 6.
    assert 125 < is_second.sum() < 175
    assert ref.count_calls(objective, key=KEY) == (1, 1)


def test_every_threat_is_checked_in_fit():
    """The second one's bounds too."""
    objective = jr.training.worst_of(jr.FGSM(), [THREATS[0], jr.L2(0.25)])
    with pytest.raises(ValueError, match="outside the bounds"):
        jr.training.fit(
            nnx.Linear(5, 4, rngs=nnx.Rngs(0)), objective, optax.sgd(0.1), X, Y,
            num_epochs=1, batch_size=4, key=KEY, progress=False,
        )  # fmt: skip


def test_n_fgsm():
    """De Jorge et al. 2022: clip(x + eta + eps sign(grad)), clipped to the box alone."""
    x = jnp.clip(0.25 * X + 0.5, 0, 1)
    threat, keys = jr.Linf(0.1), jax.random.split(KEY, 8)
    found = jr.training.NFGSM()(MODEL, x, Y, threat=threat, key=keys)
    noisy = np.array(threat.with_eps(0.2).sample(keys, x), np.float64)
    assert abs(noisy - x).max() > 0.15

    def total(x):
        return ref.cross_entropy(ref.forward(ref.PARAMS, x), ref.Y).sum()

    expected = np.clip(noisy + 0.1 * np.sign(ref.slope(total, noisy)), 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert abs(found - x).max() > 0.2
    objective = jr.training.adversarial(jr.training.NFGSM(), ref.FREE)
    assert ref.count_calls(objective, key=KEY) == (1, 1)


@pytest.mark.slow
def test_random_targets():
    """Every wrong class is a target, the label never, and the step goes there."""
    asked = []

    def loss(logits, y):
        jax.debug.callback(lambda y: asked.append(np.array(y)), y)
        return jr.losses.cross_entropy(logits, y)

    attack = jr.training.RandomTargets(jr.FGSM(loss=jr.losses.targeted(loss)))
    found = jax.jit(
        lambda key: attack(MODEL, X, Y, threat=ref.FREE, key=key)
    )(KEY)  # fmt: skip
    jax.effects_barrier()
    targets = asked[-1]
    assert (targets != ref.Y).all() and len(set((targets - ref.Y) % 4)) > 1
    towards = jr.FGSM(loss=jr.losses.targeted(jr.losses.cross_entropy))
    expected = towards(MODEL, X, jnp.asarray(targets), threat=ref.FREE)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    jr.training.adversarial(attack, ref.FREE)  # it takes labels


def test_misuse():
    with pytest.raises(TypeError, match="a list of threats"):
        jr.training.worst_of(jr.FGSM(), ref.FREE)
    with pytest.raises(ValueError, match="3 attacks and 2 threats"):
        jr.training.average_of([jr.FGSM()] * 3, THREATS)
    for odds in ([1.0], [-1, 2], [0, 0], [1, np.nan], [1, np.inf], 0.5):
        with pytest.raises(ValueError, match="one_of"):
            jr.training.one_of(jr.FGSM(), THREATS, odds)
    with pytest.raises(ValueError, match="needs a key"):
        ref.run(jr.training.one_of(jr.FGSM(), THREATS))
    for value in (-1, np.float32(-1), None):
        with pytest.raises(ValueError, match="noise="):
            jr.training.NFGSM(noise=value)
    with pytest.raises(TypeError, match=r"RandomTargets.*takes labels"):
        jr.training.RandomTargets(jr.FGSM())
