"""Random differentiable transformations of one image, for `jr.eot`.

Each is `(image, key, ...) -> image` of the same shape, for images `[H, W]` or `[H, W, C]`.
Settings go in by `jax.tree_util.Partial(rotate, max_degrees=30.0)`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike

from jaxrobust.types import Array


def rotate(image: Array, key: Array, max_degrees: ArrayLike = 30.0) -> Array:
    """Rotate by an angle uniform in +-max_degrees about the centre, bilinearly.

    Athalye et al. 2018, arXiv:1707.07397, section 3.1.

    Args:
      image: `[H, W]` or `[H, W, C]`.
      key: A typed PRNG key.
      max_degrees: Largest angle.

    Returns:
      An image of the same shape; 0 where nothing is seen.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> print(rotate(jnp.eye(3), jax.random.key(0), 0.0)[1])
      [0. 1. 0.]
    """
    angle = math.pi / 180 * jnp.asarray(max_degrees) * _uniform(key)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    matrix = jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
    return _warp(image, matrix, jnp.zeros(2))


def translate(image: Array, key: Array, max_shift: ArrayLike = 0.1) -> Array:
    """Shift by a vector uniform in +-max_shift of height and width, bilinearly.

    Athalye et al. 2018, arXiv:1707.07397, section 3.1.

    Args:
      image: `[H, W]` or `[H, W, C]`.
      key: A typed PRNG key.
      max_shift: Largest shift, as a fraction of the size.

    Returns:
      An image of the same shape; 0 where nothing is seen.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> print(translate(jnp.eye(3), jax.random.key(0), 0.0)[1])
      [0. 1. 0.]
    """
    size = jnp.asarray(image.shape[:2], jnp.float32)
    return _warp(image, jnp.eye(2), jnp.asarray(max_shift) * size * _uniform(key, (2,)))


def rescale(
    image: Array, key: Array, low: ArrayLike = 0.8, high: ArrayLike = 1.25
) -> Array:
    """Zoom about the centre by a factor log-uniform in [low, high], bilinearly.

    Athalye et al. 2018, arXiv:1707.07397, section 3.1.

    Args:
      image: `[H, W]` or `[H, W, C]`.
      key: A typed PRNG key.
      low: Smallest factor, above 0.
      high: Largest factor.

    Returns:
      An image of the same shape; 0 where nothing is seen.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> print(rescale(jnp.eye(3), jax.random.key(0), 1.0, 1.0)[1])
      [0. 1. 0.]
    """
    middle = (jnp.log(low) + jnp.log(high)) / 2
    factor = jnp.exp(middle + (jnp.log(high) - middle) * _uniform(key))
    return _warp(image, jnp.eye(2) / factor, jnp.zeros(2))


def resize_and_pad(image: Array, key: Array, low: ArrayLike = 0.8) -> Array:
    """Shrink to a random size and put it at a random place on zeros, bilinearly.

    Xie et al. 2018, arXiv:1711.01991, with sizes that need not be whole pixels.

    Args:
      image: `[H, W]` or `[H, W, C]`.
      key: A typed PRNG key.
      low: Smallest size as a fraction, above 0; the largest is 1.

    Returns:
      An image of the same shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> print(resize_and_pad(jnp.eye(3), jax.random.key(0), 1.0)[1])
      [0. 1. 0.]
    """
    key_size, key_place = jax.random.split(key)
    half = (1 - jnp.asarray(low)) / 2
    scale = 1 - half + half * _uniform(key_size)
    # The free room on each side of the shrunk image, in pixels.
    room = (1 - scale) * jnp.asarray(image.shape[:2], jnp.float32) / 2
    return _warp(image, jnp.eye(2) / scale, room * _uniform(key_place, (2,)) / scale)


def adjust_light(
    image: Array, key: Array, brightness: ArrayLike = 0.1, contrast: ArrayLike = 0.2
) -> Array:
    """Scale the contrast about the mean by 1 +- contrast and add +- brightness.

    Athalye et al. 2018, arXiv:1707.07397, section 3.1.

    Args:
      image: Any shape.
      key: A typed PRNG key.
      brightness: Largest shift, in the units of the data.
      contrast: Largest relative change of the distance from the mean.

    Returns:
      An image of the same shape, not clipped: clipping would hide the gradient.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> print(adjust_light(jnp.eye(3), jax.random.key(0), 0.0, 0.0)[1])
      [0. 1. 0.]
    """
    key_contrast, key_brightness = jax.random.split(key)
    mean = jnp.mean(image)
    factor = 1 + jnp.asarray(contrast) * _uniform(key_contrast)
    shift = jnp.asarray(brightness) * _uniform(key_brightness)
    # mean + factor (image - mean), exact where the factor is 1.
    return (image + (factor - 1) * (image - mean) + shift).astype(image.dtype)


def add_noise(image: Array, key: Array, sigma: ArrayLike = 0.1) -> Array:
    """Add Gaussian noise.

    Cohen et al. 2019, arXiv:1902.02918, use it for smoothing.

    Args:
      image: Any shape.
      key: A typed PRNG key.
      sigma: Standard deviation, in the units of the data.

    Returns:
      An image of the same shape, not clipped.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> print(add_noise(jnp.ones(2), jax.random.key(0), 0.0))
      [1. 1.]
    """
    noise = jax.random.normal(key, image.shape)
    return (image + jnp.asarray(sigma) * noise).astype(image.dtype)


def compose(*transforms: Callable[[Array, Array], Array]) -> jax.tree_util.Partial:
    """Return the transformation that applies one after the other, with separate keys.

    Athalye et al. 2018, arXiv:1707.07397, section 3.1: a distribution of distributions.

    Args:
      *transforms: Functions `(image, key) -> image`, the first applied first.

    Returns:
      A function `(image, key) -> image`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> world = compose(rotate, translate, add_noise)
      >>> print(world(jnp.eye(8), jax.random.key(0)).shape)
      (8, 8)
    """
    return jax.tree_util.Partial(_apply_all, transforms)


def _apply_all(transforms: Any, image: Array, key: Array) -> Array:
    for k, transform in enumerate(transforms):
        image = transform(image, jax.random.fold_in(key, k))
    return image


def _uniform(key: Array, shape: tuple[int, ...] = ()) -> Array:
    return jax.random.uniform(key, shape, minval=-1.0)


def _warp(image: Array, matrix: Array, shift: Array) -> Array:
    """Resample: output pixel p shows the input at c + matrix (p - c) + shift."""
    height, width = image.shape[:2]
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"))
    offset = grid - centre[:, None, None]
    source = jnp.einsum("ij,jhw->ihw", matrix, offset, precision="highest")
    source = source + (centre + shift)[:, None, None]

    def resample(channel: Array) -> Array:
        return map_coordinates(channel, list(source), order=1, mode="constant")

    if image.ndim == 2:
        return resample(image)
    return jax.vmap(resample, in_axes=-1, out_axes=-1)(image)
