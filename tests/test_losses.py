"""Losses: closed forms, invariances, and no NaN where logits are extreme."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxrobust import losses

LOGITS = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32) * 3
Y = np.random.default_rng(1).integers(0, 5, 20)
TARGET = (Y + 2) % 5
BY_LABEL = [losses.cross_entropy, losses.margin, losses.dlr]


def others(z, y):
    return np.delete(z, y).max()


def test_cross_entropy():
    """-log softmax(z)_y, against SciPy in float64."""
    expected = -scipy.special.log_softmax(np.float64(LOGITS), axis=-1)[range(20), Y]
    found = losses.cross_entropy(jnp.asarray(LOGITS), jnp.asarray(Y))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)  # float32


def test_margin_is_positive_exactly_where_misclassified():
    """The sign of the margin is the outcome of the attack."""
    found = np.asarray(losses.margin(jnp.asarray(LOGITS), jnp.asarray(Y)))
    expected = [others(z, y) - z[y] for z, y in zip(LOGITS, Y, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    wrong = LOGITS.argmax(-1) != Y
    np.testing.assert_array_equal(found > 0, wrong)
    success = losses.is_success(losses.margin, jnp.asarray(LOGITS), jnp.asarray(Y))
    np.testing.assert_array_equal(success, wrong)


def test_dlr():
    """Croce & Hein 2020, eq. (6) and (7), from sorted logits in NumPy."""
    z, y = jnp.asarray(LOGITS), jnp.asarray(Y)
    ranked = -np.sort(-LOGITS, axis=-1)
    margin = np.array([others(z, y) - z[y] for z, y in zip(LOGITS, Y, strict=True)])
    expected = margin / (ranked[:, 0] - ranked[:, 2])
    np.testing.assert_allclose(losses.dlr(z, y), expected, rtol=1e-5)
    gap = LOGITS[range(20), TARGET] - LOGITS[range(20), Y]
    expected = gap / (ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2)
    found = losses.dlr_targeted(z, (y, jnp.asarray(TARGET)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("scale, shift", [(10.0, 0.0), (1.0, 50.0), (0.01, -3.0)])
def test_dlr_ignores_scale_and_shift(scale, shift):
    """What makes it immune to gradient masking by large logits."""
    z, y = jnp.asarray(LOGITS), jnp.asarray(Y)
    pair = (y, jnp.asarray(TARGET))
    # A shift of 50 costs digits: logits of size 50 have an ulp of 4e-6.
    close = dict(rtol=1e-4, atol=1e-4)
    moved = scale * z + shift
    np.testing.assert_allclose(losses.dlr(moved, y), losses.dlr(z, y), **close)
    np.testing.assert_allclose(
        losses.dlr_targeted(moved, pair), losses.dlr_targeted(z, pair), **close
    )


def test_dlr_falls_back_where_the_ratio_does_not_exist():
    """Two classes (three when targeted) have no third (fourth) logit."""
    y, target = jnp.asarray(Y % 2), jnp.asarray(1 - Y % 2)
    two, three = jnp.asarray(LOGITS[:, :2]), jnp.asarray(LOGITS[:, :3])
    np.testing.assert_array_equal(losses.dlr(two, y), losses.margin(two, y))
    gap = LOGITS[range(20), 1 - Y % 2] - LOGITS[range(20), Y % 2]
    np.testing.assert_allclose(losses.dlr_targeted(two, (y, target)), gap, rtol=1e-6)
    np.testing.assert_allclose(losses.dlr_targeted(three, (y, target)), gap, rtol=1e-6)


def test_kl():
    """KL(softmax(clean) || softmax(attacked)), against SciPy; zero on itself."""
    p = scipy.special.softmax(np.float64(LOGITS), axis=-1)
    q = scipy.special.softmax(np.float64(LOGITS[::-1]), axis=-1)
    expected = scipy.special.rel_entr(p, q).sum(-1)
    found = losses.kl(jnp.asarray(LOGITS[::-1]), jnp.asarray(LOGITS))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)  # float32
    same = losses.kl(jnp.asarray(LOGITS), jnp.asarray(LOGITS))
    np.testing.assert_allclose(same, 0, atol=1e-6)


EXTREME = jnp.array(
    [[1e4, 0, 0, 0], [0, 0, 0, 0], [-1e4, 1e4, 0, 1], [5, 5, 5, 1], [1e-30, 0, 0, 0]]
)


@pytest.mark.parametrize("loss", [*BY_LABEL, losses.dlr_targeted, losses.kl])
@pytest.mark.parametrize("label", [0, 1])
def test_no_nan_for_extreme_logits(loss, label):
    """Saturated and equal logits give finite values and gradients."""
    y = jnp.full(5, label)
    y = {losses.dlr_targeted: (y, 3 - y), losses.kl: EXTREME[::-1]}.get(loss, y)
    values, gradients = loss(EXTREME, y), jax.grad(lambda z: loss(z, y).sum())(EXTREME)
    assert np.isfinite(values).all() and np.isfinite(gradients).all()


@pytest.mark.parametrize("loss", BY_LABEL)
def test_targeted(loss):
    """The negative at the target; equal values, so that nothing compiles twice."""
    attack_loss = losses.targeted(loss)
    z, target = jnp.asarray(LOGITS), jnp.asarray(TARGET)
    np.testing.assert_array_equal(attack_loss(z, target), -loss(z, target))
    assert attack_loss == losses.targeted(loss)
    assert hash(attack_loss) == hash(losses.targeted(loss))
    assert attack_loss != losses.targeted(lambda z, y: -loss(z, y))
    np.testing.assert_array_equal(
        losses.is_success(attack_loss, z, target), LOGITS.argmax(-1) == TARGET
    )


def test_success_of_losses_without_labels():
    """`kl` has no goal; the pair of `dlr_targeted` counts any wrong class."""
    z, y = jnp.asarray(LOGITS), jnp.asarray(Y)
    assert not losses.is_success(losses.kl, z, z).any()
    success = losses.is_success(losses.dlr_targeted, z, (y, jnp.asarray(TARGET)))
    np.testing.assert_array_equal(success, LOGITS.argmax(-1) != Y)
