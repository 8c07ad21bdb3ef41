"""TRADES against its formula in NumPy, and what its attack is given."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrobust as jr
from tests.training import reference as ref

KEY = jax.random.key(3)


def formula(params, beta=6.0):
    """Zhang et al. 2019, eq. (5), as a mean."""
    clean, attacked = (ref.forward(params, x) for x in (ref.X, ref.X_ADV))
    return (
        ref.cross_entropy(clean, ref.Y).mean() + beta * ref.kl(clean, attacked).mean()
    )


def test_value_and_update():
    objective = jr.training.trades(ref.shifted, ref.FREE)
    metrics = ref.check(objective, formula)
    clean, attacked = (ref.forward(ref.PARAMS, x) for x in (ref.X, ref.X_ADV))
    assert metrics["clean_accuracy"] == (clean.argmax(-1) == ref.Y).mean()
    assert metrics["accuracy"] == (attacked.argmax(-1) == ref.Y).mean()


def test_beta_by_step():
    """A schedule; without a step the objective says so."""
    objective = jr.training.trades(
        attack=ref.shifted, threat=ref.FREE, beta=lambda step: 0.5 * step
    )
    ref.check(objective, lambda params: formula(params, 2.0), step=jnp.int32(4))
    with pytest.raises(ValueError, match=r"beta is a schedule.*step=step"):
        ref.run(objective)


@pytest.mark.parametrize("schedule, factor", [(None, 1.0), (lambda step: 0.5, 0.5)])
def test_the_attack_climbs_the_divergence(schedule, factor):
    """One step from the random start, along the sign of the gradient of the KL."""
    attack = jr.PGD(num_steps=1, rel_step_size=0.5, keep_best=False, loss=jr.losses.kl)
    objective = jr.training.trades(attack, ref.FREE, eps_schedule=schedule)
    x, model = jnp.asarray(ref.X, jnp.float32), ref.network(ref.PARAMS)
    found = objective.inner(model, x, jnp.asarray(ref.Y), key=KEY, step=0)
    eps = 0.3 * factor
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(8))
    start = np.array(ref.FREE.with_eps(eps).sample(keys, x), np.float64)
    clean = ref.forward(ref.PARAMS, ref.X)
    grad = ref.slope(lambda x: ref.kl(clean, ref.forward(ref.PARAMS, x)).sum(), start)
    expected = np.clip(start + eps / 2 * np.sign(grad), ref.X - eps, ref.X + eps)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_an_attack_on_labels_is_given_labels():
    objective = jr.training.trades(jr.FGSM(), ref.FREE)
    x, y, model = jnp.asarray(ref.X), jnp.asarray(ref.Y), ref.network(ref.PARAMS)
    found = objective.inner(model, x, y, key=None, step=None)
    np.testing.assert_array_equal(found, jr.fgsm(model, x, y, threat=ref.FREE))


@pytest.mark.slow
def test_no_gradient_through_the_attack():
    """The same model on both sides: what was found is held fixed (Danskin)."""
    attack = jr.PGD(num_steps=2, loss=jr.losses.kl)
    objective = jr.training.trades(attack, ref.FREE)
    x, y = jnp.asarray(ref.X, jnp.float32), jnp.asarray(ref.Y)
    params = jax.tree.map(jnp.float32, ref.PARAMS)

    def loss(params, held):
        attacked = ref.network(held)
        return objective(ref.network(params), attacked, x, y, key=KEY)[0]

    shared = jax.grad(lambda params: loss(params, params))(params)
    jax.tree.map(np.testing.assert_array_equal, shared, jax.grad(loss)(params, params))


@pytest.mark.slow
def test_evaluations_in_a_step():
    """Three steps and the clean logits; two gradients of the trained model."""
    attack = jr.PGD(num_steps=3, keep_best=False, loss=jr.losses.kl)
    objective = jr.training.trades(attack, ref.FREE)
    assert ref.count_calls(objective, key=KEY) == (2, 3 + 1)


@pytest.mark.parametrize(
    "beta", [-1.0, float("nan"), float("inf"), "6", np.ones(2), True]
)
def test_a_beta_that_is_none(beta):
    with pytest.raises(ValueError, match=r"beta=.*at least 0"):
        jr.training.trades(ref.shifted, ref.FREE, beta=beta)


def test_misuse():
    """What would not move, what takes targets, and a threat in the place of the attack."""
    still = jr.PGD(num_steps=10, loss=jr.losses.kl, random_start=False)
    for attack in (still, jr.FGSM(loss=jr.losses.kl)):
        with pytest.raises(ValueError, match=r"starts at x.*start at random"):
            jr.training.trades(attack, ref.FREE)
    targeted = jr.FGSM(loss=jr.losses.targeted(jr.losses.margin))
    with pytest.raises(TypeError, match=r"takes target"):
        jr.training.trades(targeted, ref.FREE)
    with pytest.raises(TypeError, match=r"not an attack"):
        jr.training.trades(ref.FREE, jr.FGSM())
    with pytest.raises(TypeError, match=r"is not an objective"):
        jr.training.fit(
            _linear(), jr.training.trades, None, ref.X, ref.Y,
            num_epochs=1, batch_size=4, key=KEY,
        )  # fmt: skip


def _linear():
    return nnx.Linear(5, 4, rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_fit_and_vmap_over_beta():
    """Numbers are traced: one program for all of them."""

    def value(beta):
        objective = jr.training.trades(ref.shifted, ref.FREE, beta)
        x, y, model = jnp.asarray(ref.X), jnp.asarray(ref.Y), ref.network(ref.PARAMS)
        return objective(model, model, x, y)[0]

    values = jax.vmap(value)(jnp.array([0.0, 6.0]))
    expected = [formula(ref.PARAMS, beta) for beta in (0.0, 6.0)]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    result = jr.training.fit(
        _linear(), jr.training.trades(jr.PGD(num_steps=2, loss=jr.losses.kl), ref.FREE),
        optax.sgd(0.1), ref.X.astype(np.float32), ref.Y, num_epochs=1, batch_size=4,
        key=KEY, progress=False,
    )  # fmt: skip
    assert {"train_kl", "train_clean_accuracy"} <= result.history[0].keys()
