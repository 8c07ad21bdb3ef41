"""IKL against its double sum in NumPy; probabilities that are detached."""

import jax
import numpy as np
import pytest

import jaxrobust as jr
from tests.training import reference as ref

PROBS = np.random.default_rng(1).uniform(0.1, 2.0, (ref.NUM_CLASSES,) * 2)
FIXED = np.exp(ref.log_softmax(ref.forward(ref.PARAMS, ref.X)))


def formula(params, beta=20.0, alpha=4.0, probs=None):
    """Cui et al. 2024; the detached probabilities are those of PARAMS, whatever params."""
    probs = np.ones((ref.NUM_CLASSES,) * 2) if probs is None else probs
    w = (probs / probs.sum(-1, keepdims=True))[ref.Y]
    clean, attacked = (ref.forward(params, x) for x in (ref.X, ref.X_ADV))
    gaps = [z[:, :, None] - z[:, None, :] for z in (clean, attacked)]
    pairs = w[:, :, None] * w[:, None, :]
    square = (pairs * (gaps[0] - gaps[1]) ** 2).sum((1, 2)) / 4
    soft = -(FIXED * ref.log_softmax(attacked)).sum(-1)
    return (ref.cross_entropy(clean, ref.Y) + beta * square + alpha * soft).mean()


def test_value_and_update():
    ref.check(jr.training.ikl(ref.shifted, ref.FREE), formula)
    objective = jr.training.ikl(
        ref.shifted, ref.FREE, beta=3.0, alpha=lambda step: 0.5, class_probs=PROBS
    )
    ref.check(objective, lambda params: formula(params, 3.0, 0.5, PROBS), step=0)


@pytest.mark.slow
def test_evaluations_in_a_step():
    attack = jr.PGD(num_steps=3, keep_best=False, loss=jr.losses.kl)
    objective = jr.training.ikl(attack, ref.FREE)
    assert ref.count_calls(objective, key=jax.random.key(0)) == (2, 3 + 1)


def test_misuse():
    with pytest.raises(ValueError, match="alpha=-1"):
        jr.training.ikl(jr.FGSM(), ref.FREE, alpha=-1)
    for probs in (PROBS - 1, 0 * PROBS, np.nan * PROBS, PROBS[0]):
        with pytest.raises(ValueError, match=r"class_probs=.*at least 0"):
            jr.training.ikl(jr.FGSM(), ref.FREE, class_probs=probs)
    objective = jr.training.ikl(jr.FGSM(), ref.FREE, class_probs=np.ones((10, 10)))
    with pytest.raises(ValueError, match=r"class_probs.*\(10, 10\).*4 classes"):
        ref.run(objective)
