"""The layout that Square assumes is said, unambiguous, or refused; so are norms."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust.attacks.square import layout
from jaxrobust.attacks.square.square import _norm
from jaxrobust.threats.hyperplanes import geometry_of

pytestmark = pytest.mark.thin


def slow(*values):
    """Return parameters that are left out by default."""
    return pytest.param(*values, marks=pytest.mark.slow)


KEY = jax.random.key(0)
X = jax.random.uniform(jax.random.key(1), (3, 7, 6, 2))
Y = jnp.zeros(3, int)
WEIGHTS = jax.random.normal(jax.random.key(2), (X[0].size, 4))


def last(x):
    """A model of images with channels last, which the attack does not break."""
    hidden = jnp.matmul(x.reshape(len(x), -1) - 0.5, WEIGHTS, precision="highest")
    return jnp.tanh(hidden) + jnp.array([[9.0, 0.0, 0.0, 0.0]])


def first(x):
    """The same with channels first."""
    return last(jnp.moveaxis(x, 1, -1))


@pytest.mark.parametrize(
    "shape, channel_axis, axis, image",
    [
        ((9, 6), "auto", None, (1, 6, 1)),
        ((9, 6), None, None, (1, 6, 1)),
        ((9, 7, 2), "auto", 2, (1, 7, 2)),
        ((9, 2, 7), "auto", 1, (1, 7, 2)),
        ((9, 28, 28), None, None, (28, 28, 1)),
        ((9, 28, 24, 1), "auto", 3, (28, 24, 1)),
        ((9, 1, 28, 24), "auto", 1, (28, 24, 1)),
        ((9, 4, 32, 24), "auto", 1, (32, 24, 4)),
        ((9, 4, 4, 3), -1, 3, (4, 4, 3)),
        ((9, 3, 4, 4), 1, 1, (4, 4, 3)),
        ((9, 3, 4, 4), -3, 1, (4, 4, 3)),
        ((9, 28, 24, 16), 3, 3, (28, 24, 16)),
        ((9, 1, 1, 3), 3, 3, (1, 1, 3)),
        ((9, 16, 5, 8, 3), "auto", 4, (80, 8, 3)),
        ((9, 3, 16, 5, 8), "auto", 1, (80, 8, 3)),
        ((9, 2, 5, 8), None, None, (10, 8, 1)),
    ],
)
def test_channels(shape, channel_axis, axis, image):
    """What is said or found, and that images go back to where they came from."""
    assert layout.channels_of(shape, channel_axis) == axis
    x = jnp.arange(math.prod(shape)).reshape(shape)
    images = layout.to_images(x, axis)
    assert images.shape == (shape[0], *image)
    np.testing.assert_array_equal(layout.from_images(images, shape, axis), x)


@pytest.mark.parametrize(
    "shape",
    [(2, 8, 28, 28), (2, 28, 28, 8), (2, 28, 28), (2, 3, 4, 4), (2, 4, 1), (2, 40, 16)],
)
@pytest.mark.parametrize("attack", [jr.Square(num_queries=2), jr.autoattack()])
def test_ambiguous_shapes_are_refused(attack, shape):
    """Law 9, law 10: before anything has run, with the shape and what to write."""
    x, y = jnp.full(shape, 0.5), jnp.zeros(2, int)
    parts = attack.stages(threat=jr.Linf(0.1)) if hasattr(attack, "stages") else ()
    square = dict(parts).get("Square", attack)
    keys = jax.random.split(KEY, 2)
    with pytest.raises(ValueError) as raised:
        jax.eval_shape(lambda x: square.init(x, y, threat=jr.Linf(0.1), keys=keys), x)
    for text in (str(shape), "channel_axis", "-1", "1 if", "None", "autoattack("):
        assert text in str(raised.value)


def test_a_call_is_refused():
    """The error of a call is that of `init`."""
    x = jnp.full((2, 6, 6, 6), 0.5)

    def model(x):
        return x.reshape(len(x), -1)[:, :3]

    for attack in (jr.Square(num_queries=2), jr.WorstOf((jr.Square(num_queries=2),))):
        with pytest.raises(ValueError, match="channel_axis"):
            attack(model, x, jnp.zeros(2, int), threat=jr.Linf(0.1), key=KEY)


@pytest.mark.parametrize("axis", [0, 4, -4, -5])
def test_an_axis_that_x_lacks(axis):
    """Axis 0 is the batch; others do not exist."""
    with pytest.raises(ValueError, match=rf"channel_axis={axis} .*\(3, 7, 6, 2\)"):
        layout.channels_of(X.shape, axis)


def test_a_vector_of_channels_is_refused():
    """It would leave no pixel for a window: one sign for each of d coordinates at once."""
    with pytest.raises(ValueError, match="channel_axis=None"):
        layout.channels_of((3, 10), -1)


@pytest.mark.parametrize("axis", ["last", 1.0, True, (1,)])
def test_settings_that_are_no_axis(axis):
    """Law 9, and both names of the setting."""
    with pytest.raises(ValueError, match=r"Square\(channel_axis="):
        jr.Square(channel_axis=axis)
    with pytest.raises(ValueError, match=r"autoattack\(channel_axis="):
        jr.autoattack(channel_axis=axis)


@pytest.mark.parametrize("version", ["standard", "plus"])
def test_autoattack_hands_the_axis_on(version):
    """Its part Square assumes what was said."""
    attack = jr.autoattack(version, channel_axis=1)
    assert dict(attack.stages(threat=jr.L2(1.0)))["Square"] == jr.Square(channel_axis=1)
    assert repr(jr.autoattack(channel_axis=None)) == "AutoAttack(channel_axis=None)"


@pytest.mark.parametrize("kind", [jr.Linf, *map(slow, (jr.L2, jr.L1))])
def test_channels_first_is_channels_last(kind):
    """The same windows of the same examples: l_inf bitwise.

    The projections for l_2 and l_1 sum over an image in the order of its layout.
    """
    threat = kind({jr.Linf: 0.1, jr.L2: 0.5, jr.L1: 2.0}[kind])
    attack = jr.Square(num_queries=20)
    expected = attack(last, X, Y, threat=threat, key=KEY)
    got = attack(first, jnp.moveaxis(X, -1, 1), Y, threat=threat, key=KEY)
    got = jnp.moveaxis(got, 1, -1)
    assert (got != X).any((1, 2, 3)).all()
    if kind is jr.Linf:
        np.testing.assert_array_equal(got, expected)
    else:  # numbers below 1, at each of 20 projections rounded by a few ulps
        np.testing.assert_allclose(got, expected, atol=1e-5)


PER_CHANNEL = np.array([1, 0])[:, None, None]
PER_EXAMPLE = np.arange(X.size).reshape(3, 2, 7, 6) % 3


@pytest.mark.parametrize(
    "kind, mask",
    [
        (jr.Linf, PER_CHANNEL),
        (jr.L1, PER_EXAMPLE),
        slow(jr.L2, PER_EXAMPLE),
    ],
)
def test_masks_and_bounds_are_in_the_layout_of_x(kind, mask):
    """Channels first; a mask of the channels or one, and bounds, for each example."""
    x = jnp.moveaxis(X, -1, 1)
    # Every input may only grow.
    threat = kind(0.3, mask=mask, bounds=(np.asarray(x), np.ones(x.shape)))
    attack, keys = jr.Square(num_queries=5, channel_axis=1), jax.random.split(KEY, 3)
    x_adv = jax.jit(attack.run, static_argnums=0)(first, x, Y, threat, keys)
    is_fixed = np.broadcast_to(mask, x.shape) == 0
    np.testing.assert_array_equal(x_adv[is_fixed], x[is_fixed])
    assert (x_adv >= x).all() and (x_adv != x).any((1, 2, 3)).all()
    slack = 1e-6 * 0.3 + X[0].size * 1.2e-7 * (kind is not jr.Linf)
    assert (threat.distance(x_adv, x) <= 0.3 + slack).all()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Own:
    """A user's threat: another ball under a name of its own."""

    ball: Any
    order: float | None = dataclasses.field(metadata={"static": True})
    eps = property(lambda self: self.ball.eps)
    bounds = property(lambda self: self.ball.bounds)
    mask = property(lambda self: self.ball.mask)

    def project(self, x_adv, x):
        """The ball's."""
        return self.ball.project(x_adv, x)

    def steepest(self, grad, x, step_size):
        """The ball's."""
        return self.ball.steepest(grad, x, step_size)

    def sample(self, keys, x):
        """The ball's."""
        return self.ball.sample(keys, x)

    def distance(self, x_adv, x):
        """The ball's."""
        return self.ball.distance(x_adv, x)

    def with_eps(self, eps):
        """The ball's."""
        return dataclasses.replace(self, ball=self.ball.with_eps(eps))


def test_the_order_of_a_threat_decides():
    """Not its class: a user's ball is attacked as the library's of the same order."""
    for ball in (jr.Linf(0.1), jr.L2(0.5), jr.L1(2.0)):
        own = Own(ball, ball.order)
        assert _norm(own) == _norm(ball)
        assert geometry_of(own) == geometry_of(ball)
    attack, ball = jr.Square(num_queries=20), jr.Linf(0.1)
    expected = attack(last, X, Y, threat=ball, key=KEY)
    got = attack(last, X, Y, threat=Own(ball, math.inf), key=KEY)
    np.testing.assert_array_equal(got, expected)
    own = Own(jr.L1(2.0), 1)
    assert jr.autoattack().stages(threat=own) == jr.autoattack().stages(threat=own.ball)


@pytest.mark.parametrize("order", [0, 1.5, None])
@pytest.mark.parametrize("attack", [jr.Square(num_queries=2), jr.FAB(num_steps=2)])
def test_other_orders_are_refused(attack, order):
    """Another ball is not attacked as if it were l_inf."""
    threat = Own(jr.Linf(0.1), order)
    with pytest.raises(TypeError, match=rf"inf, 2 or 1, not for .*order={order}.*use"):
        attack(last, X, Y, threat=threat, key=KEY)
