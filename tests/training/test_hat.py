"""HAT against its formula in NumPy; the helper's labels are fixed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from tests.training import reference as ref

HELPER = {"w1": ref.W1[:, ::-1].copy(), "w2": ref.W2[::-1].copy()}


def formula(params, beta=2.5, gamma=0.5, h=2.0):
    """Rade & Moosavi-Dezfooli 2022, with labels of the helper at x'."""
    labels = ref.forward(HELPER, ref.X_ADV).argmax(-1)
    points = ref.X, ref.X_ADV, ref.X + h * (ref.X_ADV - ref.X)
    clean, attacked, helped = (ref.forward(params, x) for x in points)
    return (
        ref.cross_entropy(clean, ref.Y)
        + beta * ref.kl(clean, attacked)
        + gamma * ref.cross_entropy(helped, labels)
    ).mean()


def test_value_and_update():
    helper = ref.network(HELPER)
    ref.check(jr.training.hat(ref.shifted, ref.FREE, helper), formula)
    objective = jr.training.hat(
        ref.shifted,
        ref.FREE,
        helper,
        beta=1.0,
        gamma=lambda step: 0.1 * step,
        h=lambda step: step - 4.0,
    )
    ref.check(objective, lambda params: formula(params, 1.0, 0.7, 3.0), step=7)


@pytest.mark.slow
def test_evaluations_in_a_step():
    attack = jr.PGD(num_steps=3, keep_best=False, loss=jr.losses.kl)
    objective = jr.training.hat(attack, ref.FREE, ref.network(HELPER))
    assert ref.count_calls(objective, key=jax.random.key(0)) == (3, 3 + 1)


@pytest.mark.slow
def test_no_gradient_through_the_helper():
    """Not even where it is the model that is trained."""
    x, y = jnp.asarray(ref.X, jnp.float32), jnp.asarray(ref.Y)
    params = jax.tree.map(jnp.float32, ref.PARAMS)

    def loss(params, helper):
        objective = jr.training.hat(ref.shifted, ref.FREE, ref.network(helper))
        return objective(ref.network(params), ref.network(ref.PARAMS), x, y)[0]

    shared = jax.grad(lambda params: loss(params, params))(params)
    jax.tree.map(np.testing.assert_array_equal, shared, jax.grad(loss)(params, params))


def test_misuse():
    def ten_classes(x):
        return jnp.zeros((len(x), 10))

    objective = jr.training.hat(ref.shifted, ref.FREE, ten_classes)
    with pytest.raises(ValueError, match=r"helper_fn.*\(8, 10\).*\(8, 4\)"):
        ref.run(objective)
    with pytest.raises(TypeError, match="logits_fn is a"):
        jr.training.hat(ref.shifted, ref.FREE, 0.5)
    with pytest.raises(ValueError, match="gamma=-1"):
        jr.training.hat(ref.shifted, ref.FREE, ten_classes, gamma=-1)
