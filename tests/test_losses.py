"""Losses: closed forms, invariances, and no NaN where logits are extreme."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxrobust import losses

pytestmark = pytest.mark.thin

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
    success = losses.is_broken(losses.margin, jnp.asarray(LOGITS), jnp.asarray(Y))
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
        losses.is_broken(attack_loss, z, target), LOGITS.argmax(-1) == TARGET
    )


def test_success_of_losses_without_labels():
    """`kl` has no goal; the pair of `dlr_targeted` counts any wrong class."""
    z, y = jnp.asarray(LOGITS), jnp.asarray(Y)
    assert not losses.is_broken(losses.kl, z, z).any()
    success = losses.is_broken(losses.dlr_targeted, z, (y, jnp.asarray(TARGET)))
    np.testing.assert_array_equal(success, LOGITS.argmax(-1) != Y)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("gap", [1, 17, 40, 80])
def test_cross_entropy_keeps_its_gradient(gap, dtype):
    """log(1 + e^-gap) and its slope -e^-gap / (1 + e^-gap), where p_y - 1 rounds to 0."""
    z, y = jnp.array([[0, gap]], dtype), jnp.array([1])
    value, slope = jax.value_and_grad(lambda z: losses.cross_entropy(z, y).sum())(
        z.astype(jnp.float32)
    )
    exact = np.exp(-np.float64(gap))
    np.testing.assert_allclose(value, np.log1p(exact), rtol=1e-5)  # float32
    sigmoid = exact / (1 + exact)
    np.testing.assert_allclose(slope, [[sigmoid, -sigmoid]], rtol=1e-5)
    np.testing.assert_allclose(losses.cross_entropy(z, y), value, rtol=1e-6)


def test_cross_entropy_of_a_hopeless_example():
    """Far on the wrong side it is the gap, and nothing overflows."""
    z = jnp.array([[1e4, 0.0], [3e38, -3e38]])
    found = losses.cross_entropy(z, jnp.array([1, 1]))
    np.testing.assert_array_equal(found, [1e4, np.inf])


INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32"]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("num_classes", [300, 40_000])
def test_labels_of_every_integer_type(num_classes, dtype):
    """What a type cannot count to must not wrap round: 300 classes in uint8."""
    y = np.array([1, 100, 127], dtype)
    z = jax.random.normal(jax.random.key(0), (3, num_classes))
    pairs = [(jnp.asarray(y), jnp.asarray(y + 1 - 2 * (y == 127)))]
    pairs.append(tuple(part.astype(jnp.int32) for part in pairs[0]))
    for loss in BY_LABEL:
        np.testing.assert_array_equal(loss(z, pairs[0][0]), loss(z, pairs[1][0]))
    found, expected = (losses.dlr_targeted(z, pair) for pair in pairs)
    np.testing.assert_array_equal(found, expected)
    success = losses.is_broken(losses.margin, z, pairs[0][0])
    np.testing.assert_array_equal(success, z.argmax(-1) != pairs[1][0])


@pytest.mark.parametrize("excluded", [-np.inf, -3e38])
def test_excluded_classes(excluded):
    """They change neither value nor gradient: as if the model did not have them."""
    z, y = jnp.asarray(LOGITS[:, :3]), jnp.asarray(Y % 3)
    wide = jnp.concatenate([z, jnp.full((20, 2), excluded)], -1)
    for loss in (losses.cross_entropy, losses.margin, losses.dlr):
        slope = jax.grad(lambda z, f=loss: f(z, y).sum())
        np.testing.assert_allclose(loss(wide, y), loss(z, y), rtol=1e-6)
        np.testing.assert_allclose(slope(wide)[:, :3], slope(z), rtol=1e-5, atol=1e-7)
    two = jnp.where(jnp.arange(5)[None] < 2, wide, excluded)
    np.testing.assert_allclose(losses.dlr(two, y % 2), losses.margin(two, y % 2))
    pair = (y, (y + 1) % 3)
    found, expected = losses.dlr_targeted(wide, pair), losses.dlr_targeted(z, pair)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    value, slope = jax.value_and_grad(lambda w: losses.kl(w, wide[::-1]).sum())(wide)
    assert np.isfinite(value) and np.isfinite(slope).all()
    np.testing.assert_allclose(value, losses.kl(z, z[::-1]).sum(), rtol=1e-5)


def test_what_is_not_a_number_is_not_the_label():
    """NaN and +inf anywhere, -inf everywhere; one -inf only excludes a class."""
    bad = [[np.nan, 0, 1], [0, np.inf, 1], [-np.inf] * 3]
    z = jnp.array([*bad, [-np.inf, 0, 1]])
    for label in range(3):
        broken = losses.is_broken(losses.margin, z, jnp.full(4, label))
        np.testing.assert_array_equal(broken, [True] * 3 + [label != 2])
        reached = losses.is_broken(
            losses.targeted(losses.margin), z, jnp.full(4, label)
        )
        np.testing.assert_array_equal(reached, [False] * 3 + [label == 2])
    assert losses.is_broken(losses.kl, z, z).tolist() == [True] * 3 + [False]


def test_losses_of_other_outputs():
    """Regression, several labels, pixels: closed forms, and what counts as broken."""
    out, y = jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 4.0]])
    np.testing.assert_allclose(losses.squared_error(out, y), [5.0])
    z, labels = jnp.array([[2.0, -1.0], [2.0, 1.0]]), jnp.array([[1, 0], [1, 0]])
    expected = [np.log1p(np.exp(-2)) + np.log1p(np.exp(s)) for s in (-1, 1)]
    found = losses.binary_cross_entropy(z, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    broken = losses.is_broken(losses.binary_cross_entropy, z, labels)
    assert broken.tolist() == [False, True]
    loss = losses.per_position(losses.margin)
    z = jnp.asarray(LOGITS).reshape(4, 5, 5)
    each = losses.margin(z.reshape(20, 5), jnp.asarray(Y)).reshape(4, 5)
    np.testing.assert_allclose(loss(z, jnp.asarray(Y).reshape(4, 5)), each.mean(1))
    with pytest.raises(TypeError, match="takes clean logits as y"):
        losses.per_position(losses.kl)
    with pytest.raises(TypeError, match="takes clean logits as y"):
        losses.targeted(losses.kl)
