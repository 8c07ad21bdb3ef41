"""What would give a figure that means nothing is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

import jaxrobust as jr

THREAT = jr.Linf(0.1)
X = jnp.linspace(0.1, 0.9, 12).reshape(6, 2)
Y = jnp.array([0, 0, 0, 1, 1, 1])


def evaluate(logits_fn, attack=None, **options):
    attack = jr.FGSM() if attack is None else attack
    return jr.evaluate(logits_fn, X, Y, attack=attack, threat=THREAT, **options)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_logits_that_are_not_finite(value):
    """For some inputs only, of which the message names the first."""

    def broken(x):
        return jnp.where(x[:, :1] > 0.5, value, 1.0) * x

    with pytest.raises(ValueError, match=r"for 3 of 6 clean inputs.* is number 3"):
        evaluate(broken)


def test_a_class_may_be_excluded():
    def two_of_three(x):
        return jnp.concatenate([x, jnp.full_like(x[:, :1], -jnp.inf)], axis=1)

    assert evaluate(two_of_three).audit["logits_not_finite"] == 0


def test_attacked_logits_that_are_not_finite_are_reported():
    """NaN away from the clean points only."""
    clean = jnp.asarray(X)

    def fragile(x):
        moved = jnp.abs(x[:, None] - clean[None]).sum(-1).min(-1) > 1e-3
        return jnp.where(moved[:, None], jnp.nan, 10 * x)

    report = evaluate(fragile, stop_early=False)
    assert report.audit["logits_not_finite"] > 0
    assert report.robust_accuracy == 0
    assert "not numbers" in str(report)


def test_targeted_loss_without_targets():
    attack = jr.FGSM(loss=jr.losses.targeted(jr.losses.cross_entropy))
    with pytest.raises(ValueError, match=r"takes targets.*pass them as target="):
        evaluate(lambda x: x, attack)
    assert evaluate(lambda x: x, attack, target=1 - Y).clean_accuracy == 0.5


def test_dropout_with_a_mask_for_each_position():
    """The first position is the same in every batch; copies beside it are not."""

    def dropout(x):
        return x * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)

    with pytest.raises(ValueError, match="in training mode"):
        evaluate(dropout)


@pytest.mark.parametrize("eps", ["8/255", None, True])
def test_eps_that_is_no_number(eps):
    with pytest.raises(TypeError, match="eps must be a number"):
        jr.Linf(eps)


def test_linear_worst_case_of_numpy_arrays():
    weights = np.array([[1.0, -1.0], [0.0, 2.0]])
    _, margin = jr.certify.linear_worst_case(
        weights, np.zeros(2), np.full((1, 2), 0.5), np.array([0]), threat=jr.Linf(0.25)
    )
    assert float(margin[0]) == 1.0


@pytest.mark.parametrize("attack", [THREAT, jr.PGD, "pgd"])
def test_what_is_no_attack(attack):
    with pytest.raises(TypeError, match="is not an attack: pass one such as"):
        evaluate(lambda x: x, attack)


@pytest.mark.parametrize("threat", [jr.FGSM(), jr.Linf, 0.1])
def test_what_is_no_threat(threat):
    for call in (
        jr.FGSM(),
        lambda *args, **kw: jr.evaluate(*args, attack=jr.FGSM(), **kw),
    ):
        with pytest.raises(TypeError, match="is not a threat: pass the ball"):
            call(lambda x: x, X, Y, threat=threat)


def test_labels_in_a_list():
    x_adv = jr.fgsm(lambda x: x, X, Y.tolist(), threat=THREAT)
    np.testing.assert_array_equal(x_adv, jr.fgsm(lambda x: x, X, Y, threat=THREAT))


class Output:
    """What models of Hugging Face return."""

    def __init__(self, logits):
        self.logits = logits


def on_the_host(x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(np.asarray, shape, x, vmap_method="sequential")


@pytest.mark.parametrize(
    "model, message",
    [
        (Output, r"model\(x\).logits"),
        (on_the_host, "jr.Square or jr.SPSA"),
        (linen.Dense(2), "Linen module"),
    ],
)
def test_models_of_other_kinds(model, message):
    """What to do instead, in attacks and in `evaluate`."""
    attack = jr.FGSM()
    with pytest.raises((TypeError, ValueError), match=message):
        attack(model, X, Y, threat=THREAT)
    with pytest.raises((TypeError, ValueError), match=message):
        evaluate(model, attack)


def test_a_key_for_a_plain_function():
    """One answer everywhere: it says nothing, so none is demanded but by restarts."""

    def plain(logits_fn, x, y, *, threat, key=None):
        return x

    assert not jr.WorstOf((plain,)).needs_key
    assert not jr.Targets(plain).needs_key
    assert jr.Restarts(plain, 2).needs_key and not jr.Restarts(plain, 1).needs_key


@pytest.mark.slow
def test_a_diagnosis_at_radius_zero():
    """Nothing withstands an attack that may change everything, whatever eps is."""
    options = dict(
        threat=jr.Linf(0.0), key=jax.random.key(0), num_steps=2, num_queries=2
    )
    diagnosis = jr.diagnose(lambda x: 9 * x, X, Y, **options)
    assert "unbounded_eps" not in diagnosis.flagged
