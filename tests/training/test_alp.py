"""Adversarial logit pairing against its formula in NumPy."""

import jax
import numpy as np
import pytest

import jaxrobust as jr
from tests.training import reference as ref


def test_value_and_update():
    """Kannan et al. 2018: the mean over 2B examples, and the square over [B, C]."""

    def formula(params, weight=0.5):
        clean, attacked = (ref.forward(params, x) for x in (ref.X, ref.X_ADV))
        both = np.concatenate([clean, attacked])
        loss = ref.cross_entropy(both, np.concatenate([ref.Y, ref.Y])).mean()
        return loss + weight * ((clean - attacked) ** 2).mean()

    ref.check(jr.training.alp(ref.shifted, ref.FREE), formula)
    objective = jr.training.alp(ref.shifted, ref.FREE, weight=lambda step: step)
    ref.check(objective, lambda params: formula(params, 2.0), step=2)


@pytest.mark.slow
def test_evaluations_in_a_step():
    """BatchNorm sees clean and attacked inputs in one call."""
    objective = jr.training.alp(jr.PGD(num_steps=3, keep_best=False), ref.FREE)
    assert ref.count_calls(objective, key=jax.random.key(0)) == (1, 3)


def test_negative_weight():
    with pytest.raises(ValueError, match="weight=-1"):
        jr.training.alp(jr.FGSM(), ref.FREE, weight=-1)
