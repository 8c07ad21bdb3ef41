"""Transformations of optax that ask for more than the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxrobust import training
from tests.training.killed_run import KEY, cross_entropy, data

pytestmark = pytest.mark.thin

X, Y = data(30)


def objective(trained_fn, attacked_fn, x, y, *, key, step):
    return cross_entropy(trained_fn(x), y), {}


def linear():
    return nnx.Linear(6, 3, rngs=nnx.Rngs(0))


def trained(optimizer, num_epochs=8, **options):
    """Full batches: each epoch is one step, and the order does not matter."""
    options = dict(batch_size=30, key=KEY, progress=False) | options
    result = training.fit(
        linear(), objective, optimizer, X, Y, num_epochs=num_epochs, **options
    )
    losses = [line["train_loss"] for line in result.history]
    return losses, (result.last.kernel[...], result.last.bias[...])


def loss_fn(params):
    kernel, bias = params
    return cross_entropy(X @ kernel + bias[None], Y)


def by_hand(optimizer, num_epochs=8):
    """The loop of optax's documentation."""
    model = linear()
    params = model.kernel[...], model.bias[...]
    state, losses = optimizer.init(params), []

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss_fn)(params)
        extra = dict(value=value, grad=grads, value_fn=loss_fn)
        updates, state = optimizer.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state, value

    for _ in range(num_epochs):
        params, state, value = step(params, state)
        losses.append(float(value))
    return losses, params


PLATEAU = optax.contrib.reduce_on_plateau(0.5, patience=1, rtol=0.2)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.sgd(0.5), PLATEAU),
        optax.polyak_sgd(max_learning_rate=2.0),
        optax.lbfgs(memory_size=3),
    ],
    ids=["reduce_on_plateau", "polyak_sgd", "lbfgs"],
)
def test_the_loop_of_optax(optimizer):
    """Value, gradient and function are those of the step."""
    losses, params = trained(optimizer)
    expected, expected_params = by_hand(optimizer)
    # The order of 30 terms of float32 sums; the line search amplifies it a little.
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    for a, b in zip(params, expected_params, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3)
    assert losses[-1] < losses[0]


def test_the_plateau_reduces_the_rate():
    """Without the value it could not: the losses are others than those of plain SGD."""
    plain, _ = trained(optax.sgd(0.5))
    reduced, _ = trained(optax.chain(optax.sgd(0.5), PLATEAU))
    assert reduced[:2] == pytest.approx(plain[:2], rel=1e-5)
    assert reduced[-1] > 1.01 * plain[-1]


@pytest.mark.slow
def test_several_steps_in_one_call_and_a_checkpoint(tmp_path):
    """The state of a line search is carried by the loop, and comes back from a file."""
    linesearch = optax.scale_by_backtracking_linesearch(5, store_grad=True)
    optimizer = optax.lbfgs(memory_size=3, linesearch=linesearch)
    options = dict(batch_size=10, steps_per_call=3)
    trained(optimizer, num_epochs=1, out=tmp_path, **options)
    losses, _ = trained(optimizer, num_epochs=2, out=tmp_path, **options)
    whole, _ = trained(optimizer, num_epochs=2, **options)
    assert losses == whole


def transformation(update):
    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def needs_more(updates, state, params=None, *, hessian, **extra_args):
    return updates, state


def takes_only_the_value(updates, state, params=None, *, value):
    return jax.tree.map(lambda u: -0.1 * value * u, updates), state


CHAIN = optax.chain(transformation(takes_only_the_value), optax.scale(1.0))


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.contrib.sophia(0.01),
        optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=True),
        optax.contrib.momo(0.5),
        transformation(takes_only_the_value),
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)),
    ],
    ids=["sophia", "sam", "momo", "strict", "backtracking"],
)
def test_others_that_need_the_function(optimizer):
    """They run and descend."""
    losses, _ = trained(optimizer, num_epochs=4)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("optimizer", [transformation(needs_more), CHAIN])
def test_one_that_does_not_fit(optimizer):
    with pytest.raises(TypeError, match=r"does not fit.*value, grad, value_fn"):
        trained(optimizer)


@pytest.mark.slow
def test_a_line_search_attacks_anew():
    """The function that it evaluates is the inner maximum at other parameters."""
    import jaxrobust as jr

    x = jnp.array([[0.2], [0.8]])
    adversarial = training.adversarial(jr.FGSM(), jr.Linf(0.1, bounds=None))
    seen = []

    def update(updates, state, params=None, *, value, value_fn, **extra_args):
        moved = jax.tree.map(lambda p: -p, params)
        seen.append(jax.tree.leaves(params)[0].shape)
        return jax.tree.map(lambda u: u * value_fn(moved), updates), state

    model = nnx.Linear(1, 2, use_bias=False, rngs=nnx.Rngs(0))
    result = training.fit(
        model, adversarial, transformation(update), x, np.array([0, 1]),
        num_epochs=1, batch_size=2, key=KEY, progress=False,
    )  # fmt: skip
    kernel = model.kernel[...]

    def worst(kernel):
        w = (kernel[:, 1] - kernel[:, 0])[0]
        margins = jnp.array([-1.0, 1.0]) * x[:, 0] * w - 0.1 * jnp.abs(w)
        return jax.nn.softplus(-margins).mean()

    expected = kernel + worst(-kernel) * jax.grad(worst)(kernel)
    np.testing.assert_allclose(result.last.kernel[...], expected, rtol=1e-4)
    assert seen
