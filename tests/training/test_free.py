"""Free adversarial training against algorithm 1 of its paper, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrobust as jr
from tests.training import reference


def by_hand(params, x, y, delta, eps, rate, num_replays):
    """Algorithm 1 in float64, with slopes by central differences."""
    for _ in range(num_replays):

        def mean(params, at):
            return reference.cross_entropy(reference.forward(params, at), y).mean()

        x_adv = x + delta
        grads = reference.gradient(lambda p, at=x_adv: mean(p, at), params)
        uphill = reference.slope(lambda at, p=params: mean(p, at), x_adv)
        params = {name: w - rate * grads[name] for name, w in params.items()}
        delta = np.clip(delta + eps * np.sign(uphill), -eps, eps)
    return params, delta


@pytest.mark.parametrize("num_replays", [1, 3])
def test_two_batches_equal_the_algorithm(num_replays):
    """With m = 1: FGSM training with a perturbation that is carried along."""
    eps, rate = 0.25, 0.5  # eps is exact in float32, so that signs decide alike
    optimizer = optax.sgd(rate)
    step = jax.jit(
        jr.training.free(
            lambda params, x: reference.network(params)(x),
            optimizer,
            jr.Linf(eps, bounds=None),
            num_replays,
        )
    )
    params = jax.tree.map(jnp.float32, reference.PARAMS)
    x, y = jnp.float32(reference.X), jnp.asarray(reference.Y)
    state = jr.training.FreeState(params, optimizer.init(params), jnp.zeros_like(x))
    expected, delta = reference.PARAMS, np.zeros_like(reference.X)
    for batch in (reference.X, reference.X[::-1]):
        state, metrics = step(state, jnp.float32(batch), y)
        expected, delta = by_hand(
            expected, batch, reference.Y, delta, eps, rate, num_replays
        )
    for name, w in expected.items():
        # float32 sums of a few dozen terms of size 1.
        np.testing.assert_allclose(state.params[name], w, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state.delta, delta, atol=1e-6)
    assert np.isfinite(metrics["loss"])


def test_a_perturbation_obeys_the_bounds_of_the_next_batch():
    step = jr.training.free(lambda w, x: x @ w, optax.sgd(0.1), jr.Linf(0.5), 1)
    params = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    opt_state = optax.sgd(0.1).init(params)
    state = jr.training.FreeState(params, opt_state, jnp.full((1, 2), 0.5))
    x = jnp.array([[0.9, 0.1]])
    state, _ = step(state, x, jnp.array([0]))
    x_adv = x + state.delta
    assert float(x_adv.min()) >= -1e-7 and float(x_adv.max()) <= 1 + 1e-7
    assert float(jnp.abs(state.delta).max()) <= 0.5


def test_no_replay_is_refused():
    with pytest.raises(ValueError, match="num_replays=0"):
        jr.training.free(lambda w, x: x @ w, optax.sgd(0.1), jr.Linf(0.5), 0)
