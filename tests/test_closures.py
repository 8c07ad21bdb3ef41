"""Models as plain functions: what they capture may change between two calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrobust as jr

X = jax.random.uniform(jax.random.key(0), (4, 5))
Y = jnp.array([0, 1, 1, 0])
W = jax.random.normal(jax.random.key(1), (5, 2))
THREAT = jr.Linf(0.1)


def attack(fn):
    return np.asarray(jr.FGSM()(fn, X, Y, threat=THREAT))


@pytest.mark.parametrize(
    "before, after",
    [
        (W, -W),
        (np.array(W), -np.array(W)),
        (jnp.float32(1.0), jnp.float32(-1.0)),
        (1.0, -1.0),
        (True, False),
    ],
    ids=["array", "numpy", "scalar array", "float", "control flow"],
)
def test_a_replaced_capture_is_seen(before, after):
    """An attack on the old weights would report a robustness that is not there."""
    state = {"value": before}

    def fn(x):
        value = state["value"]
        if isinstance(value, bool):
            value = 1.0 if value else -1.0
        return x @ (W * value)

    first = attack(fn)
    state["value"] = after
    second = attack(fn)
    np.testing.assert_array_equal(second, attack(lambda x: x @ (W * float_of(after))))
    assert (first != second).any()


def float_of(value):
    return {True: 1.0, False: -1.0}[value] if isinstance(value, bool) else value


def test_numpy_weights_changed_in_place_are_seen():
    """NumPy arrays can be overwritten: their identity says nothing."""
    weights = np.array(W)

    def fn(x):
        return x @ weights

    first = attack(fn)
    weights *= -1
    assert (attack(fn) != first).any()


def test_a_trained_nnx_model_is_seen():
    """A closure over an NNX module sees new weights and a new mode."""
    model = nnx.Linear(5, 2, rngs=nnx.Rngs(0))

    def fn(x):
        return model(x)

    first = attack(fn)
    model.kernel[...] = -model.kernel[...]
    assert (attack(fn) != first).any()


def test_the_same_closure_is_compiled_once():
    """What has not changed compiles nothing, NumPy weights included."""
    weights = np.array(W)
    count = []

    def fn(x):
        count.append(1)
        return jax.nn.relu(x @ weights) + x @ W

    attack(fn)
    count.clear()
    attack(fn)
    # One trace looks at what is captured; none compiles.
    assert len(count) == 1


def test_partials_of_numpy_arrays():
    """NumPy leaves compare elementwise, which must not confuse the search for leaves."""
    fn = jax.tree_util.Partial(lambda w, x: x @ w, np.array(W))
    np.testing.assert_array_equal(attack(fn), attack(lambda x: x @ W))
