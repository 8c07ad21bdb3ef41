"""What an attack takes as `y` is found at any depth, and given to it or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrobust as jr

pytestmark = pytest.mark.thin

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(20, 4)).astype(np.float32)
W = jnp.asarray(RNG.normal(size=(4, 3)) * 3, jnp.float32)
THREAT, KEY = jr.Linf(0.1), jax.random.key(0)


def model(x):
    return (x - 0.5) @ W


Y = np.asarray(model(X)).argmax(-1)
TARGET = (Y + 1) % 3
TARGETED = jr.PGD(num_steps=5, loss=jr.losses.targeted(jr.losses.cross_entropy))
PAIRS = jr.APGD(num_steps=5, loss=jr.losses.dlr_targeted)


def same(logits_fn, x, y, *, threat, key=None):
    """An attack that does nothing and says nothing of its `y`."""
    del logits_fn, y, threat, key
    return x


def robust(attack, **options):
    options = {"threat": THREAT, "key": KEY} | options
    return jr.evaluate(model, X, Y, attack=attack, **options).robust_accuracy


@pytest.mark.parametrize(
    "attack",
    [
        TARGETED,
        jr.Restarts(TARGETED, 2),
        jr.WorstOf((TARGETED,)),
        jr.WorstOf((TARGETED, jr.PGD(num_steps=5))),
        jr.WorstOf((jr.PGD(num_steps=5), jr.Restarts(TARGETED, 2))),
        PAIRS,
        jr.FAB(targeted=True),
        jr.PGD(loss=jr.losses.kl),
    ],
)
def test_labels_are_not_given_as_targets(attack):
    """Bare, wrapped, in a curve: without targets there is no figure."""
    with pytest.raises((ValueError, TypeError), match=r"instead of labels.*target="):
        robust(attack)
    with pytest.raises((ValueError, TypeError), match=r"instead of labels.*target="):
        jr.evaluation.robustness_curve(
            model, X, Y, attack=attack, threat=THREAT, eps=[0.1], key=KEY
        )


def test_training_gives_labels():
    """An attack that climbs towards its `y` would make the task easier."""
    for attack in (TARGETED, jr.Restarts(TARGETED, 2), jr.WorstOf((TARGETED,)), PAIRS):
        with pytest.raises(TypeError, match="is given labels here"):
            jr.training.adversarial(attack, THREAT)


def test_each_part_gets_its_own():
    """Untargeted parts get labels, targeted ones targets; a function does not hide them."""
    bare = robust(TARGETED, target=TARGET)
    assert robust(jr.PGD(num_steps=5)) < bare < 1
    assert robust(jr.WorstOf((same, TARGETED)), target=TARGET) == bare
    both = robust(jr.WorstOf((TARGETED, jr.PGD(num_steps=5))), target=TARGET)
    assert both <= robust(jr.PGD(num_steps=5))


def test_a_target_that_nobody_takes():
    with pytest.raises(ValueError, match="takes labels, and no target="):
        robust(jr.PGD(num_steps=5), target=TARGET)


def test_a_loss_that_does_not_say_what_its_integers_are():
    def drawn(logits, y):
        return logits[jnp.arange(len(y)), y]

    with pytest.raises(ValueError, match="does not say whether"):
        robust(jr.PGD(num_steps=5, loss=drawn), target=TARGET)

    def towards(logits, y):
        return drawn(logits, y)

    towards.takes = jr.losses.TARGETS
    assert robust(jr.PGD(num_steps=5, loss=towards), target=TARGET) < 1


def test_targets_that_are_the_labels():
    with pytest.raises(ValueError, match=r"label itself for 20.*among="):
        robust(TARGETED, target=Y)
    mixed = np.where(np.arange(20) < 5, Y, TARGET)
    assert robust(TARGETED, target=mixed, among=mixed != Y) < 1


def test_every_target_that_can_be_reached_is_counted():
    """Also of what was misclassified before, if asked."""
    wrong = np.where(np.arange(20) < 10, (Y + 2) % 3, Y)
    target = (wrong + 1) % 3
    options = dict(attack=TARGETED, threat=jr.Linf(0.5), key=KEY, target=target)
    some = jr.evaluate(model, X, wrong, **options)
    every = jr.evaluate(model, X, wrong, include_misclassified=True, **options)
    assert some.robust_accuracy == every.robust_accuracy
    # The targets of the first half are the model's predictions.
    assert every.reached.sum() >= some.reached.sum() and every.reached[:10].all()
    assert every.summary()["targets_reached"] == every.reached.mean()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: jr.Targets(jr.PGD()), "one that takes pairs"),
        (
            lambda: jr.pgd(model, X, Y, threat=THREAT, key=KEY, loss=jr.losses.kl),
            "logits",
        ),
        (
            lambda: jr.apgd(
                model, X, Y, threat=THREAT, key=KEY, loss=jr.losses.dlr_targeted
            ),
            "pair .labels",
        ),
        (
            lambda: jr.fgsm(model, X, Y, threat=THREAT, loss=lambda z, y: z.mean()),
            r"returned shape \(\)",
        ),
        (
            lambda: jr.fgsm(model, X, Y, threat=THREAT, loss=lambda z, y: z[:, :1]),
            r"returned shape \(20, 1\)",
        ),
        (
            lambda: jr.WorstOf((TARGETED, jr.PGD()))(
                model, X, Y, threat=THREAT, key=KEY
            ),
            "labels in one part",
        ),
    ],
)
def test_what_a_loss_does_not_take(make, message):
    with pytest.raises((TypeError, ValueError), match=f"(?s){message}"):
        make()


def test_soft_labels_at_any_depth():
    """The own loss of a part says what it takes, not that of the wrapper."""
    soft = jax.nn.one_hot(Y, 3)

    def own(logits, y):
        return optax.softmax_cross_entropy(logits, y)

    attack = jr.FGSM(loss=own)
    expected = attack(model, X, soft, threat=THREAT)
    inner = jr.WorstOf((attack,))
    for wrapped in (jr.WorstOf((attack,), loss=own), inner, jr.Restarts(inner, 1)):
        found = wrapped(model, X, soft, threat=THREAT)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, y: jr.fgsm(lambda x: (model(x),), x, y, threat=THREAT), "a tuple"),
        (
            lambda x, y: jr.fgsm(lambda x: model(x)[:, :1], x, y, threat=THREAT),
            "binary",
        ),
        (lambda x, y: jr.fgsm(model, x, y[:3], threat=THREAT), r"shape \(3,\)"),
        (lambda x, y: jr.fgsm(model, x, y[:, None], threat=THREAT), r"y\[:, 0\]"),
        (lambda x, y: jr.fgsm(model, x[0], y, threat=THREAT), r"x\[None\]"),
    ],
)
def test_shapes_tell_the_same_inside_jit(call, message):
    for function in (call, jax.jit(call)):
        with pytest.raises((TypeError, ValueError), match=message):
            function(jnp.asarray(X), jnp.asarray(Y))


def test_other_tasks_equal_their_closed_forms():
    """Regression, several labels and pixels: the steepest step of a linear model."""
    for loss, y, slope in (
        (jr.losses.squared_error, model(X) - 1.0, jnp.sum(W, 1)[None]),
        (
            jr.losses.binary_cross_entropy,
            jnp.zeros((20, 3), int),
            jax.nn.sigmoid(model(X)) @ W.T,
        ),
        (
            jr.losses.per_position(jr.losses.margin),
            jnp.zeros((20, 1), int),
            None,
        ),
    ):
        if slope is None:
            x_adv = jr.fgsm(lambda x: model(x)[:, None], X, y, threat=THREAT, loss=loss)
            best = jr.fgsm(model, X, y[:, 0], threat=THREAT, loss=jr.losses.margin)
        else:
            x_adv = jr.fgsm(model, X, y, threat=THREAT, loss=loss)
            best = np.clip(X + 0.1 * np.sign(slope), 0, 1)
        np.testing.assert_allclose(x_adv, best, atol=1e-6)
