"""MART against its formula in NumPy."""

import jax
import numpy as np
import pytest

import jaxrobust as jr
from tests.training import reference as ref


def formula(params, beta=5.0):
    """Wang et al. 2020: BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x))."""
    clean, attacked = (ref.forward(params, x) for x in (ref.X, ref.X_ADV))
    rows = np.arange(len(ref.Y))
    p_adv = np.exp(ref.log_softmax(attacked))
    wrong = p_adv.copy()
    wrong[rows, ref.Y] = -1
    bce = -np.log(p_adv[rows, ref.Y]) - np.log(1 - wrong.max(-1))
    doubt = 1 - np.exp(ref.log_softmax(clean))[rows, ref.Y]
    return (bce + beta * ref.kl(clean, attacked) * doubt).mean()


def test_value_and_update():
    ref.check(jr.training.mart(ref.shifted, ref.FREE), formula)
    objective = jr.training.mart(ref.shifted, ref.FREE, beta=lambda step: 0.5 * step)
    ref.check(objective, lambda params: formula(params, 1.5), step=3)


@pytest.mark.slow
def test_saturated_predictions():
    """A probability of 1 for a wrong class, where the published code has a guard."""
    objective = jr.training.mart(jr.FGSM(), jr.Linf(0.0, bounds=None))
    z = np.array([[0.0, 200.0, 0.0], [200.0, 0.0, 0.0]], np.float32)
    y = np.array([0, 0])

    def loss(scale):
        model = lambda x: scale * x  # noqa: E731
        return objective(model, model, z, y)[0]

    value, slope = jax.value_and_grad(loss)(1.0)
    # -log p_0 = 200 and -log(1 - p_1) = 200 - log 2, times KL = 0; the other has 0.
    np.testing.assert_allclose(value, (400 - np.log(2)) / 2, rtol=1e-5)
    np.testing.assert_allclose(slope, 400 / 2, rtol=1e-5)


@pytest.mark.slow
def test_evaluations_in_a_step():
    attack = jr.PGD(num_steps=3, keep_best=False)
    objective = jr.training.mart(attack, ref.FREE)
    assert ref.count_calls(objective, key=jax.random.key(0)) == (2, 3)


def test_negative_beta():
    with pytest.raises(ValueError, match="beta=-1"):
        jr.training.mart(jr.FGSM(), threat=ref.FREE, beta=-1)
