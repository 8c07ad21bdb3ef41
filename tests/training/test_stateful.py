"""A model's state through an objective: against the calls written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from tests.training import reference as ref

KEY, RATE = jax.random.key(0), 0.25
X, Y = jnp.asarray(ref.X, jnp.float32), jnp.asarray(ref.Y)
PARAMS = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), ref.PARAMS)
STATE = {"mean": jnp.full(5, 2.0), "calls": jnp.int32(7)}


def train_fn(params, state, x):
    """Centre the batch by its own mean, and remember it."""
    mean = x.mean(0)
    state = {
        "mean": (1 - RATE) * state["mean"] + RATE * mean,
        "calls": state["calls"] + 1,
    }
    return ref.network(params)(x - mean[None]), state


def eval_fn(params, state, x):
    return ref.network(params)(x - state["mean"][None])


def remembered(state, *batches):
    for x in batches:
        state = train_fn(PARAMS, state, x)[1]
    return state


def assert_same(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        expected,
    )


def test_each_call_sees_the_state_that_the_last_has_left():
    """TRADES calls twice; compiled and differentiated, with the objective's loss."""
    objective = jr.training.trades(ref.shifted, ref.FREE)
    loss_fn = jr.training.stateful(objective, train_fn, eval_fn)
    compiled = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, (metrics, state)), grads = compiled(PARAMS, STATE, X, Y)
    x_adv = jnp.asarray(ref.X_ADV, jnp.float32)
    assert_same(state, remembered(STATE, X, x_adv))
    assert not jnp.allclose(state["mean"], remembered(STATE, x_adv, X)["mean"])

    def by_hand(params):
        def model(x):
            return train_fn(params, STATE, x)[0]

        return objective(model, model, X, Y)

    (expected, _), by_hand_grads = jax.value_and_grad(by_hand, has_aux=True)(PARAMS)
    assert_same((loss, grads), (expected, by_hand_grads))
    assert (
        loss == metrics["loss"] and STATE["calls"] == 7
    )  # what was given is as it was


def test_the_adversary_sees_the_evaluation_mode():
    """FGSM against `eval_fn`; in training mode it would find other points."""
    objective = jr.training.adversarial(jr.FGSM(), ref.FREE)
    loss_fn = jr.training.stateful(objective, train_fn, eval_fn)

    def attacked(model):
        return jr.fgsm(model, X, Y, threat=ref.FREE)

    in_eval = attacked(lambda x: eval_fn(PARAMS, STATE, x))
    in_train = attacked(lambda x: train_fn(PARAMS, STATE, x)[0])
    assert jnp.abs(in_eval - in_train).max() > 0.1
    assert_same(loss_fn.inner(PARAMS, STATE, X, Y), in_eval)


def test_a_gradient_of_its_own_and_calls_under_grad():
    """SAM at one crafted batch; GradAlign's calls under `jax.grad` leave nothing."""
    attack = jr.FGSM()
    objective = jr.training.gradalign(attack, ref.FREE, weight=0.5)
    loss_fn = jr.training.stateful(objective, train_fn, eval_fn)
    found = loss_fn.inner(PARAMS, STATE, X, Y, key=KEY)

    def at_found(params):
        return loss_fn.outer(params, STATE, X, Y, found)

    (_, (_, state)), grads = jax.jit(lambda p: jr.training.SAM(0.1)(at_found, p))(
        PARAMS
    )
    assert_same(state, remembered(STATE, found[0]))
    plain = jax.grad(at_found, has_aux=True)(PARAMS)[0]
    assert jnp.abs(grads["w1"] - plain["w1"]).max() > 1e-3


def test_misuse():
    """An objective that is none, a state that is missing or a part of it."""
    with pytest.raises(TypeError, match="is not an objective"):
        jr.training.stateful("trades", train_fn, eval_fn)
    for returned, error, text in (
        (lambda p, s, x: x, TypeError, r"train_fn\(params, state, x\) -> "),
        (lambda p, s, x: (x, s["mean"]), ValueError, "return the whole state"),
    ):
        loss_fn = jr.training.stateful(jr.training.standard(), returned, eval_fn)
        with pytest.raises(error, match=text):
            loss_fn(PARAMS, STATE, X, Y)
