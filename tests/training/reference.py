"""A two-layer network in float64 NumPy, to compare objectives with the papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxrobust as jr

_RNG = np.random.default_rng(0)
NUM_CLASSES = 4
# Numbers that float32 holds exactly: both sides compute with the same ones.
X, W1, W2, DELTA = (
    _RNG.normal(size=shape).astype(np.float32).astype(np.float64)
    for shape in [(8, 5), (5, 6), (6, NUM_CLASSES), (8, 5)]
)
Y = np.arange(8) % NUM_CLASSES
PARAMS = {"w1": W1, "w2": W2}
FREE = jr.Linf(0.3, bounds=None)
X_ADV = X + 0.25 * DELTA


def shifted(logits_fn, x, y, *, threat, key=None):
    """Return always the same points, as an attack."""
    return jnp.asarray(X_ADV, jnp.float32)


def network(params):
    """The network in JAX."""
    w1, w2 = params["w1"], params["w2"]
    return lambda x: jnp.matmul(
        jnp.tanh(jnp.matmul(x, w1, precision="highest")), w2, precision="highest"
    )


def forward(params, x):
    """The network in NumPy."""
    return np.tanh(x @ params["w1"]) @ params["w2"]


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def cross_entropy(z, y):
    return -log_softmax(z)[np.arange(len(y)), y]


def kl(z_p, z_q):
    """KL(softmax(z_p) || softmax(z_q)) of each example."""
    log_p, log_q = log_softmax(z_p), log_softmax(z_q)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def slope(function, at, h=1e-5):
    """Central differences of a scalar, at one array: exact to h^2."""
    result = np.zeros_like(at)
    for index in np.ndindex(*at.shape):
        step = np.zeros_like(at)
        step[index] = h
        result[index] = (function(at + step) - function(at - step)) / (2 * h)
    return result


def gradient(expected, params):
    return {
        name: slope(lambda w, name=name: expected(params | {name: w}), value)
        for name, value in params.items()
    }


def run(objective, *, key=None, step=None, attacked=None):
    """Return loss, metrics and gradient of an objective."""
    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), PARAMS)

    def loss(params):
        attacked_fn = network(jax.lax.stop_gradient(params))
        x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y)
        return objective(
            network(params), attacked or attacked_fn, x, y, key=key, step=step
        )

    (value, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, metrics, grads


def check(objective, expected, **options):
    """Compare the value and its gradient with those of the formula."""
    value, metrics, grads = run(objective, **options)
    np.testing.assert_allclose(value, expected(PARAMS), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], value)
    by_hand = gradient(expected, PARAMS)
    for name, expected_grad in by_hand.items():
        # Where terms cancel, float32 keeps the error of the largest entries: 1e-7 of them
        # for each of some ten sums.
        atol = 1e-6 * abs(expected_grad).max()
        np.testing.assert_allclose(grads[name], expected_grad, rtol=1e-4, atol=atol)
    return metrics


def count_calls(objective, **options):
    """Return how often the trained and the attacked model are evaluated in a step."""
    trained, attacked = [], []

    def counting(calls, params):
        def model(x):
            jax.debug.callback(lambda x: calls.append(len(x)), x)
            return network(params)(x)

        return model

    def step(params):
        x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y)
        fns = counting(trained, params), counting(attacked, params)
        return objective(*fns, x, y, **options)[0]

    jax.block_until_ready(jax.jit(step)(jax.tree.map(jnp.float32, PARAMS)))
    jax.effects_barrier()
    return len(trained), len(attacked)
