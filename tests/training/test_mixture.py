"""Mixtures, label smoothing and distillation against their formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrobust as jr
from tests.training import reference as ref

TEACHERS = [
    {"w1": ref.W1[:, ::-1].copy(), "w2": ref.W2},
    {"w1": -ref.W1, "w2": ref.W2[::-1].copy()},
]


def smoothed(z, y, amount):
    """Szegedy et al. 2016, section 7: the cross-entropy with soft labels."""
    q = (1 - amount) * np.eye(ref.NUM_CLASSES)[y] + amount / ref.NUM_CLASSES
    return -(q * ref.log_softmax(z)).sum(-1)


def test_mixture():
    """Clean and adversarial risk, one of them with smoothed labels, one by schedule."""
    loss = jr.training.label_smoothing(0.2)
    parts = [jr.training.standard(loss), jr.training.adversarial(ref.shifted, ref.FREE)]

    def formula(params, a=0.5, b=0.5):
        clean, attacked = (ref.forward(params, x) for x in (ref.X, ref.X_ADV))
        mean = ref.cross_entropy(attacked, ref.Y).mean()
        return a * smoothed(clean, ref.Y, 0.2).mean() + b * mean

    metrics = ref.check(jr.training.mixture(parts), formula)
    assert metrics["accuracy_1"] != metrics["accuracy_2"]

    def own(trained_fn, attacked_fn, x, y, *, key, step):
        """The second part, as a function."""
        return parts[1](trained_fn, attacked_fn, x, y, key=key, step=step)

    ref.check(jr.training.mixture([parts[0], own]), formula, key=jax.random.key(0))
    objective = jr.training.mixture(parts, (0.3, lambda step: step / 10))
    ref.check(objective, lambda params: formula(params, 0.3, 0.7), step=7)
    assert objective.threat == (ref.FREE,)


@pytest.mark.slow
def test_each_part_has_its_own_randomness():
    noise = jr.training.adversarial(jr.FGSM(random_start=True), ref.FREE)
    x, y = jnp.asarray(ref.X, jnp.float32), jnp.asarray(ref.Y)
    a, b = jr.training.mixture([noise, noise]).inner(
        ref.network(ref.PARAMS), x, y, key=jax.random.key(0), step=None
    )
    assert (a != b).any()


def test_distilled():
    """Chen et al. 2021: 0.3 CE + 0.1 KD(t_1) + 0.6 KD(t_2), T = 2, all at x_adv."""

    def formula(params, weights=(0.3, 0.1, 0.6), T=2.0):
        z = ref.forward(params, ref.X_ADV)
        total = weights[0] * ref.cross_entropy(z, ref.Y).mean()
        for weight, teacher in zip(weights[1:], TEACHERS, strict=True):
            p = np.exp(ref.log_softmax(ref.forward(teacher, ref.X_ADV) / T))
            total += weight * T**2 * -(p * ref.log_softmax(z / T)).sum(-1).mean()
        return total

    teachers = [ref.network(teacher) for teacher in TEACHERS]
    ref.check(jr.training.distilled(ref.shifted, ref.FREE, teachers), formula)
    attack = jr.PGD(num_steps=3, keep_best=False)
    objective = jr.training.distilled(attack, ref.FREE, teachers)
    assert ref.count_calls(objective, key=jax.random.key(0)) == (1, 3)


@pytest.mark.slow
def test_no_gradient_through_a_teacher():
    """Not even where it is the model that is trained."""
    x, y = jnp.asarray(ref.X, jnp.float32), jnp.asarray(ref.Y)
    params = jax.tree.map(jnp.float32, ref.PARAMS)

    def loss(params, teacher):
        objective = jr.training.distilled(
            ref.shifted, ref.FREE, [ref.network(teacher)], (0.5, 0.5)
        )
        return objective(ref.network(params), ref.network(ref.PARAMS), x, y)[0]

    shared = jax.grad(lambda params: loss(params, params))(params)
    jax.tree.map(np.testing.assert_array_equal, shared, jax.grad(loss)(params, params))


def test_misuse():
    def ten_classes(x):
        return jnp.zeros((len(x), 10))

    objective = jr.training.distilled(ref.shifted, ref.FREE, [ten_classes], (1, 1))
    with pytest.raises(ValueError, match=r"teacher_fns\[0\].*\(8, 10\).*\(8, 4\)"):
        ref.run(objective)
    with pytest.raises(ValueError, match="1 teachers and 3 weights"):
        jr.training.distilled(ref.shifted, ref.FREE, [ten_classes])
    with pytest.raises(TypeError, match=r"teacher_fns=.*a list of"):
        jr.training.distilled(ref.shifted, ref.FREE, ten_classes)
    for temperature in (0, np.float32(-1), float("inf"), None):
        with pytest.raises(ValueError, match="temperature="):
            jr.training.distilled(
                ref.shifted, ref.FREE, [ten_classes], (1, 1), temperature
            )
    with pytest.raises(ValueError, match=r"weights\[1\]=-1"):
        jr.training.mixture([jr.training.standard()] * 2, (1, -1))
    with pytest.raises(ValueError, match="0 objectives"):
        jr.training.mixture([])
    with pytest.raises(TypeError, match=r"objectives=.*a list of"):
        jr.training.mixture(jr.training.standard())
    with pytest.raises(TypeError, match=r"0\.5 is not an objective"):
        jr.training.mixture([0.5])
    for amount in (-0.1, 1.0, np.float32(-0.1), True, None):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            jr.training.label_smoothing(amount)


def test_values_are_checked_without_a_threat():
    """NaN in the data is seen where no part of the objective has a threat."""
    x = np.array(ref.X, np.float32)
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        jr.training.fit(
            nnx.Linear(5, 4, rngs=nnx.Rngs(0)),
            jr.training.mixture([jr.training.standard()]), optax.sgd(0.1), x, ref.Y,
            num_epochs=1, batch_size=4, key=jax.random.key(0), progress=False,
        )  # fmt: skip
