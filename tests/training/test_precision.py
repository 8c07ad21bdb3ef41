"""Micro-batches, mixed precision and rematerialisation inside `fit`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrobust as jr
from jaxrobust import training
from tests.training.killed_run import KEY, cross_entropy, data

X, Y = data(64)


class MLP(nnx.Module):
    """No batch statistics: the loss is a mean over examples."""

    def __init__(self, dtype=None, is_remat=False):
        rngs = nnx.Rngs(0)
        self.hidden = nnx.Linear(6, 16, dtype=dtype, param_dtype=jnp.float32, rngs=rngs)
        self.out = nnx.Linear(16, 3, dtype=dtype, param_dtype=jnp.float32, rngs=rngs)
        self.is_remat = is_remat

    def features(self, x):
        return nnx.relu(self.hidden(x))

    def __call__(self, x):
        features = type(self).features
        features = nnx.remat(features) if self.is_remat else features
        return self.out(features(self, x))


def fit(model, optimizer=None, num_epochs=3, objective=None, **options):
    objective = objective or training.adversarial(jr.FGSM(), jr.Linf(0.05))
    options = dict(batch_size=16, key=KEY, progress=False) | options
    return training.fit(
        model, objective, optimizer or optax.sgd(0.5), X, Y, num_epochs=num_epochs,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("inner", [optax.sgd(0.5), optax.adam(0.01)])
def test_four_micro_batches_are_one_batch(inner):
    large = fit(MLP(), inner, batch_size=64)
    small = fit(MLP(), optax.MultiSteps(inner, every_k_schedule=4), batch_size=16)
    for name in ("hidden", "out"):
        a, b = (getattr(r.last, name).kernel[...] for r in (large, small))
        # float32 sums in another order; Adam's first steps are signs, away from zero.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_computing_in_bfloat16_keeps_what_must_be_exact():
    """Parameters, loss, gradients and the gradient that the attack follows: float32."""
    seen = {}

    def objective(trained_fn, attacked_fn, x, y, *, key, step):
        logits = trained_fn(x)
        grad = jax.grad(lambda x: jr.losses.cross_entropy(attacked_fn(x), y).sum())(x)
        loss = jr.losses.cross_entropy(logits, y).mean()
        seen.update(logits=logits.dtype, grad=grad.dtype, loss=loss.dtype)
        return loss, {}

    def recording(loss_fn, params):
        value, grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        seen["grads"] = {leaf.dtype for leaf in jax.tree.leaves(grads)}
        return value, grads

    half = fit(MLP(jnp.bfloat16), objective=objective, gradient=recording)
    assert seen == {
        "logits": jnp.bfloat16, "grad": jnp.float32, "loss": jnp.float32,
        "grads": {jnp.dtype("float32")},
    }  # fmt: skip
    assert half.last.out.kernel[...].dtype == jnp.float32
    whole = fit(MLP())
    half = fit(MLP(jnp.bfloat16))
    for a, b in zip(half.history, whole.history, strict=True):
        # 8 bits of mantissa: a relative error of 1/256 in each activation.
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=0.02)


def test_rematerialisation_changes_nothing():
    plain, remat = fit(MLP()), fit(MLP(is_remat=True))
    np.testing.assert_allclose(
        plain.last.out.kernel[...], remat.last.out.kernel[...], rtol=0, atol=1e-5
    )


@pytest.mark.slow
def test_checkpointing_an_objective():
    def objective(trained_fn, attacked_fn, x, y, *, key, step):
        graph, state = nnx.split(trained_fn)
        forward = jax.checkpoint(lambda state, x: nnx.merge(graph, state)(x))
        return cross_entropy(forward(state, x), y), {}

    remat, plain = (
        fit(MLP(), objective=objective),
        fit(MLP(), objective=training.standard()),
    )
    assert remat.history[-1]["train_loss"] == pytest.approx(
        plain.history[-1]["train_loss"], rel=1e-5
    )
