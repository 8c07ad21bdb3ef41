"""Random crops and flips of image batches, on the device."""

import jax
import jax.numpy as jnp

from jaxrobust import _batch


def pad_crop_flip(
    key: jax.Array, x: jax.Array, *, padding: int = 4, flip: bool = True
) -> jax.Array:
    """Shift each image at random, filling with zeros, and mirror half of them.

    He et al. 2016, arXiv:1512.03385, section 4.2: pad by 4 pixels, crop,
    flip.

    Each result depends on its own image and key only. Works under `jit`, `vmap` and
    `scan`, on uint8 as well as on floats.

    Args:
      key: One typed key, or one for each example `[B]`. One key stands for
        `fold_in(key, i)` for example i.
      x: Images `[B, H, W, C]` of any dtype.
      padding: Largest shift in pixels, in each direction; static.
      flip: Whether to mirror left to right with probability 1/2; static.

    Returns:
      `[B, H, W, C]` of the dtype of `x`.

    Raises:
      TypeError: If `key` is not a typed key.
      ValueError: If `padding` is negative, or the shapes do not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> pad_crop_flip(jax.random.key(0), jnp.ones((2, 32, 32, 3), jnp.uint8)).shape
      (2, 32, 32, 3)
    """
    if not _batch.is_keys(key):
        raise TypeError(
            f"pad_crop_flip got {type(key).__name__} as its key; "
            "need a typed key: jax.random.key(seed)."
        )
    x = jnp.asarray(x)
    if x.ndim != 4 or key.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"pad_crop_flip got images {x.shape} and keys {key.shape}; "
            "need images [B, H, W, C] and one key, or [B] keys."
        )
    if padding < 0:
        raise ValueError(f"padding={padding} pixels; need 0 or more.")
    keys = _batch.per_example_keys(key, x.shape[0])
    return jax.vmap(lambda k, image: _augment(k, image, padding, flip))(keys, x)


def _augment(key: jax.Array, image: jax.Array, padding: int, flip: bool) -> jax.Array:
    """Augment one image `[H, W, C]`."""
    crop_key, flip_key = jax.random.split(key)
    if padding:
        padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        top, left = jax.random.randint(crop_key, (2,), 0, 2 * padding + 1)
        image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
    if flip:
        image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
    return image
