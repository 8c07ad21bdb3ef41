"""Models as plain functions: what they capture may change between two calls."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrobust as jr
from jaxrobust.attacks._model import as_model
from tests.counting import count_compilations

pytestmark = pytest.mark.thin

X = jax.random.uniform(jax.random.key(0), (4, 5))
Y = jnp.array([0, 1, 1, 0])
W = jax.random.normal(jax.random.key(1), (5, 2))
THREAT = jr.Linf(0.1)
KEY = jax.random.key(2)


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


def test_a_jitted_function_inside_is_seen():
    """Its arrays are constants of the inner program."""
    state = {"value": W}

    def fn(x):
        return jax.jit(lambda x: x @ state["value"])(x) + 0.1 * jax.nn.relu(x @ W)

    first = attack(fn)
    state["value"] = -W
    second = attack(fn)
    assert (first != second).any()
    np.testing.assert_array_equal(second, attack(lambda x: -x @ W))


@pytest.mark.parametrize("what", ["sign", "weights"])
def test_a_derivative_rule_is_seen(what):
    """The values are the same: only the gradient's program shows it."""
    state = {"sign": 1.0, "weights": W}

    def fn(x):
        sign, weights = state["sign"], state["weights"]

        @jax.custom_vjp
        def model(x):
            return x @ W

        model.defvjp(lambda x: (model(x), None), lambda _, ct: (sign * ct @ weights.T,))
        return model(x)

    first = attack(fn)
    np.testing.assert_array_equal(first, attack(fn))
    state[what] = -state[what]
    assert (attack(fn) != first).any()


def test_a_function_of_the_host_is_seen():
    """What it captures is not in the program."""
    state = {"weights": np.array(W)}

    def fn(x):
        weights, shape = state["weights"], jax.ShapeDtypeStruct((len(x), 2), x.dtype)
        host = jr.bpda(
            lambda x: jax.pure_callback(
                lambda x: np.asarray(x) @ weights, shape, x, vmap_method="sequential"
            ),
            backward=lambda x: x @ W,
        )
        return host(x)

    pgd = jr.PGD(num_steps=2, loss=jr.losses.margin)
    first = np.asarray(pgd(fn, X, Y, threat=THREAT, key=KEY))
    state["weights"] = -state["weights"]
    assert (pgd(fn, X, Y, threat=THREAT, key=KEY) != first).any()


@jax.jit
def call(model, x):
    return model(x)


def test_other_batch_sizes():
    """SPSA and a queue of examples call the model with batches of other sizes."""
    weights, numbers = W + 0, np.array(W) / 2

    def fn(x):
        return x @ weights + jax.nn.relu(x @ numbers) * (2.0 if len(x) > 8 else 1.0)

    def check():
        model = as_model(fn, X).tree
        for x in (X, jnp.concatenate([X, X, X])):
            np.testing.assert_allclose(call(model, x), fn(x), rtol=1e-6)

    check()
    with count_compilations() as events:
        model = as_model(fn, X).tree
        call(model, X), call(model, jnp.concatenate([X, X, X]))
    assert not events
    weights = -weights
    numbers *= -1
    check()


@pytest.mark.parametrize("kind", [jnp.full, np.full])
def test_an_array_that_only_one_batch_size_captures(kind):
    """It is a constant of the compiled program, which no later call may run."""
    state, x = {}, jnp.concatenate([X, X])

    def fn(x):
        return x @ W + (state["shift"] if len(x) > 4 else 0)

    for shift in (1.0, 2.0):
        state["shift"] = kind((1, 2), shift, "float32")
        np.testing.assert_allclose(call(as_model(fn, X).tree, x), fn(x), rtol=1e-6)


def test_trained_weights_compile_nothing():
    """New arrays of the same program are arguments."""
    state = {"value": W}

    def fn(x):
        return jax.nn.relu(x @ state["value"]) + x @ np.array(state["value"])

    first = attack(fn)
    state["value"] = 2 - W
    with count_compilations() as events:
        second = attack(fn)
    assert not events and (first != second).any()


class Method:
    def __init__(self):
        self.weights = W + 0

    def logits(self, x):
        return x @ self.weights


@pytest.mark.parametrize("kind", ["plain", "jitted", "nnx", "method", "evaluate"])
def test_nothing_keeps_a_model_alive(kind):
    """A loop over models needs the memory of one of them."""
    references = []
    x, y = jnp.concatenate([X, X, X]), jnp.concatenate([Y, Y, Y])
    for seed in range(2):
        weights = jax.random.normal(jax.random.key(seed), (5, 2))
        fn = lambda x, weights=weights: jax.nn.relu(x @ weights)  # noqa: E731
        if kind == "jitted":
            fn = jax.jit(fn)
        if kind == "nnx":
            model = nnx.Linear(5, 2, rngs=nnx.Rngs(seed))
            weights = model.kernel.get_value()
            fn = lambda x, model=model: model(x)  # noqa: E731
            del model
        if kind == "method":
            fn = Method().logits
            weights = fn.__self__.weights
        if kind == "evaluate":  # of a few examples at last, in fewer slots
            options = dict(attack=jr.Restarts(jr.PGD(num_steps=8), 8), threat=THREAT)
            jr.evaluate(fn, x, y, batch_size=4, key=KEY, progress=False, **options)
        else:  # looks at the first few by themselves
            jr.FGSM()(fn, x, y, threat=THREAT)
        references.append(weakref.ref(weights))
        del fn, weights
    gc.collect()
    assert [reference() for reference in references] == [None] * 2


@pytest.mark.parametrize("kind", ["mesh", "device"])
def test_data_on_other_devices(kind):
    """What a closure captures may have been placed on one device."""
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices: the suite's conftest.py makes virtual ones")
    mesh = jax.make_mesh((4,), "b", axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("b"))
    place = spread if kind == "mesh" else jax.devices()[1]
    weights = jax.device_put(W, jax.devices()[0])
    x, y = jax.device_put((X, Y), place)
    x_adv = jr.FGSM()(lambda x: x @ weights, x, y, threat=THREAT)
    np.testing.assert_array_equal(x_adv, attack(lambda x: x @ W))
    assert x_adv.devices() == x.devices()
