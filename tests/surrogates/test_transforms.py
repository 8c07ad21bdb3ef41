"""Transformations against exact cases: whole pixels, right angles, statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust.surrogates.transforms import _warp

pytestmark = pytest.mark.thin

IMAGE = jax.random.uniform(jax.random.key(0), (6, 5, 2))
KEYS = jax.random.split(jax.random.key(1), 50)
ALL = {
    "rotate": jr.transforms.rotate,
    "translate": jr.transforms.translate,
    "rescale": jr.transforms.rescale,
    "resize_and_pad": jr.transforms.resize_and_pad,
    "adjust_light": jr.transforms.adjust_light,
    "add_noise": jr.transforms.add_noise,
}


def test_warp_by_whole_pixels_and_right_angles():
    """Bilinear resampling at the pixels themselves is indexing."""
    shifted = _warp(IMAGE, jnp.eye(2), jnp.array([1.0, -2.0]))
    expected = np.zeros_like(IMAGE)
    expected[:-1, 2:] = IMAGE[1:, :-2]
    np.testing.assert_allclose(shifted, expected, atol=1e-6)
    square = IMAGE[:5]
    turned = _warp(square, jnp.array([[0.0, -1.0], [1.0, 0.0]]), jnp.zeros(2))
    np.testing.assert_allclose(turned, np.rot90(square, -1), atol=1e-6)
    half = _warp(IMAGE, jnp.eye(2), jnp.array([0.5, 0.0]))
    np.testing.assert_allclose(half[:-1], (IMAGE[:-1] + IMAGE[1:]) / 2, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_shape_randomness_and_gradient(name):
    """The shape stays, keys matter, and the gradient is that of the draw."""
    transform = ALL[name]
    outputs = jax.jit(jax.vmap(transform, (None, 0)))(IMAGE, KEYS)
    assert outputs.shape == (len(KEYS), *IMAGE.shape)
    assert len(np.unique(np.asarray(outputs)[:, 2, 2, 0])) == len(KEYS)
    assert transform(IMAGE[..., 0], KEYS[0]).shape == (6, 5)

    # All of them are affine in the image: the derivative is the difference, exactly.
    direction = jax.random.normal(jax.random.key(2), IMAGE.shape)
    _, tangent = jax.jvp(lambda i: transform(i, KEYS[0]), (IMAGE,), (direction,))
    difference = transform(IMAGE + direction, KEYS[0]) - transform(IMAGE, KEYS[0])
    np.testing.assert_allclose(tangent, difference, atol=1e-5)
    assert jnp.abs(tangent).max() > 0.1


@pytest.mark.slow
def test_resized_images_stay_inside():
    """Shrinking to [low, 1] loses no mass at the border, whatever the place."""
    image = jnp.zeros((16, 16)).at[6:10, 6:10].set(1.0)
    outputs = jax.vmap(lambda k: jr.transforms.resize_and_pad(image, k, 0.5))(KEYS)
    mass = np.asarray(outputs.sum((1, 2))) / 16
    # A block shrunk by s in [0.5, 1] has mass s^2, up to the sampling of its edges.
    assert mass.min() > 0.1 and mass.max() < 1.2
    spread = outputs.sum(0) > 0
    assert not spread[:2].any() and spread.sum() > 60


def test_compose_uses_separate_keys():
    """Two noises do not cancel and are not equal."""
    noise = jax.tree_util.Partial(jr.transforms.add_noise, sigma=1.0)
    double = jr.transforms.compose(noise, noise)
    zero = jnp.zeros((40, 40))
    # The standard deviation of a sum of two independent noises: sqrt 2; of equal ones: 2.
    assert abs(double(zero, KEYS[0]).std() - np.sqrt(2)) < 0.1
