"""ODI: towards a class first, then up the margin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust.types import Guided

FEATURES, CLASSES, EPS = 5, 4, 0.2
WEIGHTS = np.random.default_rng(0).normal(size=(FEATURES, CLASSES)).astype(np.float32)
X = np.random.default_rng(1).uniform(0.3, 0.7, (3, FEATURES)).astype(np.float32)
Y, GUIDE = np.array([0, 1, 2]), np.array([3, 3, 0])


def by_hand(num_odi_steps, num_steps):
    """Yield the iterates of Tashiro et al. 2020, eq. 2, then of the margin, in NumPy."""
    x_adv = X.copy()
    for step in range(num_odi_steps + num_steps):
        logits = x_adv @ WEIGHTS
        towards = GUIDE
        size = EPS
        if step >= num_odi_steps:
            others = np.where(np.eye(CLASSES, dtype=bool)[Y], -np.inf, logits)
            towards = others.argmax(1)
            done = (step - num_odi_steps) / num_steps
            size = EPS * (0.01 + 0.99 * (1 + np.cos(np.pi * done)) / 2)
        slope = WEIGHTS.T[towards] - WEIGHTS.T[Y]
        x_adv = np.clip(x_adv + size * np.sign(slope), X - EPS, X + EPS)
        yield np.clip(x_adv, 0, 1)


def test_the_steps_are_those_of_the_formula():
    attack, threat = jr.ODI(num_odi_steps=2, num_steps=4), jr.Linf(EPS)
    state = attack.init(
        jnp.asarray(X), Guided(Y, GUIDE), threat=threat, keys=None, start=X
    )
    step = jax.jit(
        lambda state: attack.step(lambda x: x @ WEIGHTS, state, threat=threat)
    )
    for expected in by_hand(2, 4):
        state = step(state)
        # One rounding for each sum and product of numbers below 1.
        np.testing.assert_allclose(state.x_adv, expected, atol=1e-6)
    state = step(state)
    margins = jr.losses.margin(jnp.asarray(state.best @ WEIGHTS), jnp.asarray(Y))
    np.testing.assert_allclose(state.best_loss, margins, atol=1e-6)
    assert attack.outcome(state, threat=threat).is_over.all()


@pytest.mark.parametrize("name", ["num_steps", "num_odi_steps"])
def test_it_takes_steps(name):
    with pytest.raises(ValueError, match=rf"ODI\({name}=0\): a whole number"):
        jr.ODI(**{name: 0})


def test_a_class_that_the_model_has_left_out_is_no_start():
    """Its logit is -inf: the margin is climbed at once, and no NaN comes of it."""
    attack = jr.Targets(jr.ODI(num_odi_steps=1, num_steps=8))

    def model(x):
        return jnp.asarray(x @ WEIGHTS).at[:, 3].set(-jnp.inf)

    y = jnp.argmax(model(X), -1)
    x_adv = attack(model, X, y, threat=jr.Linf(EPS), key=jax.random.key(0))
    assert np.isfinite(x_adv).all()
    assert (jr.losses.margin(model(x_adv), y) > jr.losses.margin(model(X), y)).all()
