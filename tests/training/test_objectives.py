"""Objectives: values and gradients against closed forms on a linear model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrobust as jr

X = jax.random.normal(jax.random.key(0), (8, 5))
Y = jnp.arange(8) % 2
SIGN = 2 * Y - 1
W = jax.random.normal(jax.random.key(1), (5,))
EPS = 0.3
FREE = jr.Linf(EPS, bounds=None)


def logits(w, x):
    """Two logits, (0, w x): the margin of label 1 is w x."""
    z = jnp.matmul(x, w, precision="highest")
    return jnp.stack([jnp.zeros_like(z), z], axis=-1)


def risk(objective, w, key=None):
    frozen = jax.lax.stop_gradient(w)
    return objective(lambda x: logits(w, x), lambda x: logits(frozen, x), X, Y, key=key)


def closed_form(w):
    """Mean of log(1 + exp(-(margin - eps |w|_1))), Goodfellow et al. 2015, section 5."""
    margins = SIGN * jnp.matmul(X, w, precision="highest")
    return jnp.mean(jax.nn.softplus(-margins + EPS * jnp.abs(w).sum()))


@pytest.mark.parametrize("attack", [jr.FGSM(), jr.PGD(num_steps=5)])
def test_adversarial_risk_of_a_linear_model(attack):
    """The inner maximum is known: value and gradient (Danskin) must equal it."""
    objective = jr.training.adversarial(attack, threat=FREE)
    (value, metrics), gradient = jax.value_and_grad(
        lambda w: risk(objective, w, jax.random.key(2)), has_aux=True
    )(W)
    expected, expected_gradient = jax.value_and_grad(closed_form)(W)
    np.testing.assert_allclose(value, expected, rtol=1e-5)  # float32
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
    assert value.shape == () and value.dtype == jnp.float32
    margins = SIGN * (X @ W) - EPS * jnp.abs(W).sum()
    np.testing.assert_allclose(metrics["accuracy"], (margins > 0).mean())
    np.testing.assert_allclose(metrics["loss"], value)


def test_gradient_equals_finite_differences():
    """Danskin, without trusting the closed form: the attack is run again at w +- h."""
    objective = jr.training.adversarial(jr.FGSM(), threat=FREE)
    value = jax.jit(lambda w: risk(objective, w)[0])
    gradient = jax.grad(lambda w: risk(objective, w)[0])(W)
    h = 1e-2
    for i in range(5):
        step = jnp.zeros(5).at[i].set(h)
        difference = (value(W + step) - value(W - step)) / (2 * h)
        # Truncation h^2 and float32 cancellation 1e-7 / h.
        np.testing.assert_allclose(gradient[i], difference, atol=1e-3)


def test_standard_risk():
    """The clean mean loss; the attacked model and the key are not looked at."""
    value, metrics = risk(jr.training.standard(), W)
    expected = jnp.mean(jax.nn.softplus(-SIGN * (X @ W)))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (SIGN * (X @ W) > 0).mean())


@pytest.mark.parametrize(
    "objective",
    [jr.training.standard(), jr.training.adversarial(jr.PGD(num_steps=3), FREE)],
)
def test_the_trained_model_is_called_once(objective):
    """BatchNorm in training mode updates its statistics in each call: once a step."""
    calls = []

    def trained(x):
        calls.append(x.shape)
        return logits(W, x)

    def attacked(x):
        return logits(W, x)

    objective(trained, attacked, X, Y, key=jax.random.key(0))
    assert calls == [X.shape]


def test_the_adversary_sees_the_attacked_model_alone():
    """The caller decides what is attacked, e.g. BatchNorm in evaluation mode."""
    objective = jr.training.adversarial(jr.FGSM(), threat=FREE)
    seen = []

    def trained(x):
        seen.append(x)
        return logits(W, x)

    objective(trained, lambda x: logits(-W, x), X, Y)
    expected = X + EPS * jnp.sign(W)[None] * SIGN[:, None]
    np.testing.assert_allclose(seen[0], expected, atol=1e-6)  # inward rounding


def test_half_precision():
    """Losses get float32, whatever the model returns; the model gets the type of x."""
    seen = {"logits": set(), "x": set()}

    def loss(logits, y):
        seen["logits"].add(logits.dtype)
        return jr.losses.cross_entropy(logits, y)

    def attack(logits_fn, x, y, *, threat, key=None):
        return x + jnp.asarray(0.25, x.dtype)

    def model(x):
        seen["x"].add(x.dtype)
        return x

    x, h, tr = X.astype(jnp.bfloat16), np.float32(2), jr.training
    objectives = [tr.adversarial, tr.trades, tr.alp, tr.ikl, tr.gradalign]
    objectives = [make(attack, FREE, loss=loss) for make in objectives]
    objectives += [tr.standard(loss), tr.worst_of([attack] * 2, [FREE] * 2, loss=loss)]
    objectives += [tr.hat(attack, FREE, model, h=h), tr.mart(attack, FREE)]
    for objective in objectives:
        value, _ = objective(model, model, x, Y, key=jax.random.key(0))
        assert value.dtype == jnp.float32
    assert seen == {"logits": {jnp.dtype("float32")}, "x": {jnp.dtype("bfloat16")}}


def test_eps_schedule():
    """The radius grows with the training step; without a step the objective says so."""
    schedule = optax.schedules.linear_schedule(0.0, 1.0, 10)
    objective = jr.training.adversarial(jr.FGSM(), FREE, eps_schedule=schedule)

    def value(step):
        return objective(
            lambda x: logits(W, x), lambda x: logits(W, x), X, Y, step=step
        )

    clean, full = risk(jr.training.standard(), W)[0], closed_form(W)
    np.testing.assert_allclose(value(jnp.int32(0))[0], clean, rtol=1e-5)
    np.testing.assert_allclose(value(jnp.int32(10))[0], full, rtol=1e-5)
    assert clean < value(jnp.int32(5))[0] < full
    with pytest.raises(ValueError, match="step=step"):
        value(None)


def test_two_gradients_of_one_crafted_batch():
    """`fit(gradient=...)`: the attack runs once a step, SAM takes both gradients there."""
    from flax import nnx

    crafted, seen = [], []

    class Counting(jr.training.Objective):
        threat = FREE

        def inner(self, attacked_fn, x, y, *, key, step):
            jax.debug.callback(lambda: crafted.append(1))
            return jr.fgsm(attacked_fn, x, y, threat=FREE)

        def outer(self, trained_fn, x, y, found, *, step):
            jax.debug.callback(lambda x: seen.append(np.array(x)), found)
            loss = jr.losses.cross_entropy(trained_fn(found), y).mean()
            return loss, {"loss": loss}

    def uphill(loss_fn, params):
        grads, _ = jax.grad(loss_fn, has_aux=True)(params)
        worst = jax.tree.map(lambda p, g: p + 0.5 * g, params, grads)
        return jax.value_and_grad(loss_fn, has_aux=True)(worst)

    def train(**options):
        return jr.training.fit(
            nnx.Linear(5, 2, rngs=nnx.Rngs(0)), Counting(), optax.sgd(0.1), X, Y,
            num_epochs=1, batch_size=8, key=jax.random.key(0), progress=False, **options
        ).last.kernel[...]  # fmt: skip

    moved = train(gradient=uphill)
    jax.effects_barrier()
    assert len(crafted) == 1 and len(seen) == 2
    np.testing.assert_array_equal(*seen)
    # By hand: the gradient at the parameters half a gradient uphill, at the same points.
    x_adv = jnp.asarray(seen[0])
    layer = nnx.Linear(5, 2, rngs=nnx.Rngs(0))
    weights, bias = layer.kernel[...], layer.bias[...]
    fgsm = jr.fgsm(
        lambda x: x @ weights + bias[None], X, Y, threat=FREE
    )  # in the order of the data
    order = [int(np.abs(np.array(fgsm) - row).sum(1).argmin()) for row in seen[0]]
    assert sorted(order) == list(range(8))

    def loss(parameters):
        logits = x_adv @ parameters[0] + parameters[1][None]
        return jr.losses.cross_entropy(logits, Y[jnp.array(order)]).mean()

    grads = jax.grad(loss)((weights, bias))
    worst = jax.tree.map(lambda p, g: p + 0.5 * g, (weights, bias), grads)
    expected = weights - 0.1 * jax.grad(loss)(worst)[0]
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-6)
    assert (moved != train()).any()
