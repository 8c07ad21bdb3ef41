"""A small training run in a process of its own; test_fit kills it.

Usage: python -m tests.training.killed_run OUT NUM_EPOCHS
"""

import sys

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxrobust import training

KEY = jax.random.key(0)


class Net(nnx.Module):
    """Batch statistics and dropout: state besides the parameters."""

    def __init__(self, seed: int = 0):
        rngs = nnx.Rngs(seed)
        self.hidden = nnx.Linear(6, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        """Return logits."""
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def data(num_examples: int, seed: int = 0):
    """Three noisy classes that a linear rule separates well."""
    x_key, y_key = jax.random.split(jax.random.key(seed))
    y = jax.random.randint(y_key, (num_examples,), 0, 3)
    noise = jax.random.uniform(x_key, (num_examples, 6))
    return 0.6 * noise + 0.4 * jnp.repeat(jax.nn.one_hot(y, 3), 2, axis=1), y


def cross_entropy(logits, y):
    """Return the mean loss."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def attack(logits_fn, x, y, *, threat, key):
    """One signed step from a random start; `threat` is the radius."""
    if key.ndim == 0:
        key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(x)))
    start = jax.vmap(lambda k: jax.random.uniform(k, x.shape[1:], minval=-1))(key)
    grad = jax.grad(lambda x: cross_entropy(logits_fn(x), y))(x + threat * start)
    return jnp.clip(x + threat * jnp.sign(grad), 0, 1)


def objective(trained_fn, attacked_fn, x, y, *, key, step):
    """Adversarial training with the attack above."""
    x_adv = attack(attacked_fn, x, y, threat=0.05, key=key)
    logits = trained_fn(jax.lax.stop_gradient(x_adv))
    return cross_entropy(logits, y), {"accuracy": (logits.argmax(-1) == y).mean()}


def run(num_epochs: int, out=None, *, seed: int = 0, **changes):
    """Train the small model; the same call for the killed and the whole run."""
    options = dict(
        batch_size=16,
        key=KEY,
        validation=data(41, seed=1),
        validation_attack=attack,
        threat=0.05,
        ema_decay=0.9,
        out=out,
        metadata={"recipe": {"learning_rate": 0.01}},
    )
    optimizer = optax.adam(optax.linear_schedule(0.03, 0.003, 60))
    x, y = data(100)
    return training.fit(
        Net(seed),
        objective,
        optimizer,
        x,
        y,
        num_epochs=num_epochs,
        **options | changes,
    )


if __name__ == "__main__":
    run(int(sys.argv[2]), sys.argv[1])
