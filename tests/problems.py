"""A problem that tests of the evaluation share.

The model is a small MLP on which PGD breaks some examples at once, some late, some
never, so that slots are refilled at different times.
"""

import jax
import jax.numpy as jnp

import jaxrobust as jr

N, FEATURES = 30, 6
KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = (
    2 * jax.random.normal(KEYS[0], (FEATURES, 8)),
    2 * jax.random.normal(KEYS[1], (8, 3)),
)
X = jax.random.uniform(KEYS[2], (N, FEATURES))


def mlp(params, x):
    hidden = jnp.tanh(jnp.matmul(x - 0.5, params[0], precision="highest"))
    return jnp.matmul(hidden, params[1], precision="highest")


MODEL = jax.tree_util.Partial(mlp, PARAMS)
Y = jnp.argmax(MODEL(X), -1).at[0].add(1) % 3  # the first is wrong from the start
THREAT = jr.Linf(0.1)
KEY = jax.random.key(7)
STEPS = 8
PGD = jr.PGD(num_steps=STEPS, rel_step_size=0.2)
RESTARTS = jr.Restarts(PGD, 3)


def evaluate(attack=RESTARTS, **options):
    options = dict(threat=THREAT, key=KEY, batch_size=8) | options
    return jr.evaluate(MODEL, X, Y, attack=attack, **options)
