"""Misuse is caught with advice: what was given, what is needed, what to do."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrobust as jr

X = jnp.full((4, 3), 0.5)
Y = jnp.array([0, 1, 2, 0])
KEY = jax.random.key(0)


def model(x):
    return x * 2


def fgsm(x=X, y=Y, fn=model, threat=None, key=None):
    return jr.FGSM()(fn, x, y, threat=threat or jr.Linf(0.1), key=key)


def evaluate(x=X, y=Y, fn=model, threat=None, key=None):
    threat = threat or jr.Linf(0.1)
    return jr.evaluate(fn, x, y, attack=jr.FGSM(), threat=threat, key=key)


each_way = pytest.mark.parametrize("call", [fgsm, evaluate])


@each_way
def test_an_error_of_the_model_names_the_shape(call):
    """As of a model that wants channels elsewhere, or no batch."""
    images = X[:, None, None]
    with pytest.raises(TypeError, match="dot_general requires") as caught:
        call(images, fn=lambda x: x @ jnp.ones((2, 2)))
    notes = " ".join(caught.value.__notes__)
    assert re.search(r"batch of shape \(4, 1, 1, 3\).*\[B, H, W, C\]", notes)


@each_way
@pytest.mark.parametrize(
    "threat, is_warned",
    [
        (jr.Linf(8.0), True),
        (jr.Linf(1.0), False),
        (jr.Linf(8.0, bounds=(0.0, 255.0)), False),
        (jr.L2(1.7), False),  # below the square root of 3
        (jr.L2(1.8), True),
        (jr.L1(2.9), False),
        (jr.Linf(8.0, bounds=None), False),
    ],
)
def test_eps_beyond_the_data(call, threat, is_warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(threat=threat)
    assert len(caught) == is_warned
    assert all("everything is allowed" in str(w.message) for w in caught)
    assert all(w.filename == __file__ for w in caught)  # the line to be mended


def test_a_large_eps_of_a_concrete_threat_inside_jit():
    """Only the weights are traced, the threat is not."""

    @jax.jit
    def attacked(weights):
        return jr.fgsm(lambda x: x @ weights, X, Y, threat=jr.L2(1.2))

    assert attacked(jnp.eye(3)).shape == X.shape


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_concrete_data_inside_jit(convert):
    """As a user's training step has them; also where nothing at all is traced."""
    x, y, threat = convert(X), convert(Y), jr.Linf(0.1)

    @jax.jit
    def attacked(weights):
        return jr.fgsm(lambda x: x @ weights, x, y, threat=threat)

    constant = jax.jit(lambda: jr.fgsm(model, x, y, threat=threat))
    np.testing.assert_array_equal(attacked(2 * jnp.eye(3)), fgsm())
    np.testing.assert_array_equal(constant(), fgsm())


def test_evaluate_inside_jit():
    with pytest.raises(TypeError, match="not for jit"):
        jax.jit(lambda x: evaluate(x))(X)


def test_arrays_as_one_tuple():
    with pytest.raises(TypeError, match="arrays one by one"):
        jr.evaluate(model, (X, Y), attack=jr.FGSM(), threat=jr.Linf(0.1))


@each_way
def test_something_else_as_a_model(call):
    with pytest.raises(TypeError, match=r"jr.models.logits_fn\(model\)"):
        call(fn="model")


def test_the_function_that_makes_an_attack():
    with pytest.raises(TypeError, match=r"jr.autoattack\(\)"):
        jr.evaluate(model, X, Y, attack=jr.autoattack, threat=jr.Linf(0.1))


def test_advice_for_a_missing_key_fits_the_attack():
    with pytest.raises(ValueError, match="random_start=False"):
        jr.PGD()(model, X, Y, threat=jr.Linf(0.1))
    with pytest.raises(ValueError, match=r"key=jax.random.key\(0\)\.$"):
        jr.Square()(model, X, Y, threat=jr.Linf(0.1))


def test_bounds_of_each_example():
    lower = jnp.array([0.0, 0.5, 0.0, 0.5])[:, None]
    threat = jr.Linf(0.1, bounds=(lower, lower + 0.5))
    x_adv = fgsm(X, threat=threat)
    assert bool(((x_adv >= lower) & (x_adv <= lower + 0.5)).all())


def test_a_loss_of_ones_own_may_take_soft_labels():
    attack = jr.FGSM(loss=lambda logits, y: optax.softmax_cross_entropy(logits, y))
    x_adv = attack(model, X, jnp.eye(3)[Y], threat=jr.Linf(0.1))
    np.testing.assert_array_equal(x_adv, fgsm())


def test_an_error_of_the_loss_is_not_the_models():
    attack = jr.FGSM(loss=lambda logits, y: np.maximum(logits[:, 0], 0))
    with pytest.raises(jax.errors.TracerArrayConversionError):
        attack(model, X, Y, threat=jr.Linf(0.1))


@pytest.mark.parametrize("attack", [jr.PGD, jr.APGD, jr.Square, jr.FGSM, jr.SPSA])
def test_a_loss_by_its_name(attack):
    with pytest.raises(TypeError, match=r"loss='dlr' is not a function"):
        attack(loss="dlr")


@each_way
@pytest.mark.parametrize(
    "settings, error, advice",
    [
        ({"x": X * 255}, ValueError, r"outside the bounds.*normalisation inside"),
        ({"x": X - 1}, ValueError, r"outside the bounds.*bounds=None"),
        ({"x": X.at[1, 0].set(jnp.nan)}, ValueError, r"NaN.*1 of 4.*repair"),
        ({"x": X.at[1].set(jnp.inf)}, ValueError, r"infinite values in 1 of 4"),
        ({"x": (X * 255).astype("uint8")}, TypeError, r"uint8.*astype.*255"),
        ({"x": X[:, 0]}, ValueError, r"one example pass x\[None\]"),
        ({"y": Y + 1}, ValueError, r"labels from 1 to 3.*0..2"),
        ({"y": Y - 1}, ValueError, r"labels from -1 to 1"),
        ({"y": Y.astype("float32")}, TypeError, r"float32.*integer labels"),
        ({"y": Y[:3]}, ValueError, r"shape \(3,\).*4 examples"),
        ({"y": jnp.eye(3, dtype=int)[Y]}, ValueError, r"one-hot|argmax"),
        (
            {"y": jnp.eye(3)[Y]},
            (TypeError, ValueError),
            r"(?i)y.argmax\(-1\).*one-hot",
        ),
        ({"x": jnp.ones((3, 3)), "y": Y[0]}, ValueError, r"shape \(\).*\[None\]"),
        ({"fn": lambda x: (x, x)}, TypeError, r"returned a tuple.*model\(x\)\[0\]"),
        ({"fn": lambda x: np.maximum(x, 0)}, ValueError, r"traced by JAX.*jax.numpy"),
        ({"fn": lambda x: x if x.max() > 1 else -x}, ValueError, r"traced.*jnp.where"),
        ({"fn": lambda x: x[: int(x.sum())]}, ValueError, r"traced by JAX"),
        ({"fn": lambda x: x[x > 0]}, ValueError, r"traced by JAX"),
        ({"fn": lambda x: {"logits": x, "n": 3}}, TypeError, r"returned a dict"),
        ({"fn": lambda x: x[:, 0]}, ValueError, r"returned shape \(4,\).*stack"),
        ({"fn": lambda x: x[:, :1]}, ValueError, r"binary model with one output"),
        ({"fn": lambda x: x[:2]}, ValueError, r"\[B, C\] = \[4, number"),
        ({"key": 0}, TypeError, r"key=0 is not a PRNG key.*jax.random.key"),
        ({"key": jnp.arange(4.0)}, TypeError, r"is not a PRNG key"),
    ],
)
def test_misuse(call, settings, error, advice):
    """Law 9, for attacks and for `evaluate`."""
    with pytest.raises(error, match=f"(?s){advice}"):
        call(**settings)


@each_way
def test_keys_of_the_wrong_number(call):
    """One key or one for each example; three keys for four examples are a mistake."""
    with pytest.raises(ValueError, match=r"shape \(3,\).*4 examples"):
        call(key=jax.random.split(jax.random.key(0), 3))


@each_way
def test_probabilities_instead_of_logits(call):
    """A model that ends in a softmax hides its gradients: it looks robust."""
    with pytest.warns(UserWarning, match="return the logits before the softmax"):
        call(fn=lambda x: jax.nn.softmax(x * 2))


@each_way
def test_rounding_beyond_the_bounds_is_forgiven(call):
    """Undone normalisations leave values one rounding error outside of [0, 1]."""
    call(x=X.at[0, 0].set(1 + 2e-7))


def test_labels_are_checked_in_every_batch():
    """A bad label in the last batch is as bad as in the first."""
    with pytest.raises(ValueError, match="labels from 0 to 9"):
        jr.evaluate(
            model,
            X,
            Y.at[3].set(9),
            attack=jr.FGSM(),
            threat=jr.Linf(0.1),
            batch_size=2,
        )


@pytest.mark.parametrize(
    "target, error", [(Y + 5, ValueError), (Y[:2], ValueError), (Y * 1.0, TypeError)]
)
def test_targets_are_checked(target, error):
    """A target out of range would turn the loss to NaN and the attack into nothing."""
    attack = jr.FGSM(loss=jr.losses.targeted(jr.losses.margin))
    with pytest.raises(error, match="labels"):
        jr.evaluate(model, X, Y, attack=attack, threat=jr.Linf(0.1), target=target)


def test_float_one_hot_labels_are_no_labels():
    """They look like the clean logits that `kl` takes, but accuracy needs labels."""
    with pytest.raises(ValueError, match="accuracy needs labels"):
        evaluate(y=jnp.eye(3)[Y])


def test_nothing_to_evaluate():
    """No examples have no accuracy."""
    with pytest.raises(ValueError, match="no examples"):
        evaluate(x=X[:0], y=Y[:0])


@pytest.mark.parametrize(
    "attack",
    [
        jr.PGD(),
        jr.FGSM(random_start=True),
        jr.Restarts(jr.PGD(), 2),
        jr.WorstOf((jr.FGSM(), jr.PGD())),
    ],
)
def test_missing_key(attack):
    """Law 8: an attack that draws says that it needs a key, and how to make one."""
    with pytest.raises(ValueError, match=r"needs a key.*jax\.random\.key\(0\)"):
        attack(model, X, Y, threat=jr.Linf(0.1))
    with pytest.raises(ValueError, match=r"needs a key"):
        jax.jit(lambda x: attack(model, x, Y, threat=jr.Linf(0.1)))(X)
    with pytest.raises(ValueError, match=r"needs a key"):
        jr.evaluate(model, X, Y, attack=attack, threat=jr.Linf(0.1))


@pytest.mark.parametrize(
    "make, advice",
    [
        (lambda: jr.PGD(step_size=0.1, rel_step_size=0.1), "give one of them"),
        (lambda: jr.FGSM(step_size=0.1, rel_step_size=0.1), "give one of them"),
        (lambda: jr.PGD(num_steps=0), "at least 1"),
        (lambda: jr.PGD(num_steps=2.0), "whole number"),
        (lambda: jr.PGD(step_size=0.0), "above 0"),
        (lambda: jr.PGD(rel_step_size=float("nan")), "above 0"),
        (lambda: jr.PGD(optimizer=optax.sgd(1.0), step_size=1.0), "sets its own steps"),
        (lambda: jr.PGD(optimizer=optax.sgd(1.0), momentum=1.0), "sets its own steps"),
        (
            lambda: jr.PGD(optimizer=optax.sgd(1.0), step_schedule=lambda t: t),
            "schedule to",
        ),
        (lambda: jr.Restarts(jr.PGD(), 0), "at least 1"),
        (lambda: jr.Restarts(jr.FGSM(), 2), "random_start=True"),
        (lambda: jr.WorstOf(()), "at least one attack"),
        (lambda: jr.WorstOf(jr.FGSM()), "tuple of at least one"),
    ],
)
def test_contradictory_settings(make, advice):
    """Settings that would make a silently weak attack are refused."""
    with pytest.raises(ValueError, match=advice):
        make()


class BatchNormModel(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.norm(x) * 2


def varied(count=4):
    return jax.random.uniform(jax.random.key(1), (count, 3))


@each_way
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: lambda x: m(x)])
def test_nnx_model_in_training_mode(call, wrap):
    """Batch statistics would change under attack: `model.eval()` is needed."""
    module = BatchNormModel()
    with jax.numpy_rank_promotion("allow"):
        with pytest.raises(ValueError, match=r"training mode.*logits_fn"):
            call(x=varied(), fn=wrap(module))
        module.eval()
        call(x=varied(), fn=wrap(module))


def test_batch_statistics_without_a_framework():
    """`evaluate` notices that an example's logits depend on its neighbours."""
    with pytest.raises(ValueError, match=r"depend on its neighbours.*training mode"):
        evaluate(x=varied(), fn=lambda x: x - x.mean(axis=0, keepdims=True))
    assert np.isfinite(evaluate(x=varied()).robust_accuracy)
