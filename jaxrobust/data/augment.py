"""Random crops and flips of image batches, on the device."""

import jax
import jax.numpy as jnp

from jaxrobust._core import batching, channels, checks


def pad_crop_flip(
    key: jax.Array,
    x: jax.Array,
    *,
    padding: int = 4,
    flip: bool = True,
    channel_axis: int | None = None,
) -> jax.Array:
    """Shift each image at random, filling with zeros, and mirror half of them.

    He et al. 2016, arXiv:1512.03385, section 4.2: pad by 4 pixels, crop,
    flip.

    Each result depends on its own image and key only. Works under `jit`, `vmap` and
    `scan`, on uint8 as well as on floats.

    Args:
      key: One PRNG key, or one for each example `[B]`. One key stands for
        `fold_in(key, i)` for example i.
      x: Images `[B, H, W, C]` or `[B, C, H, W]` of any dtype.
      padding: Largest shift in pixels, in each direction; static.
      flip: Whether to mirror left to right with probability 1/2; static.
      channel_axis: The axis of `x` that holds the channels: -1 for `[B, H, W, C]`, 1 for
        `[B, C, H, W]`. By default the first or last axis of an image, where it has at
        most 4 entries and the other more; static.

    Returns:
      Images of the shape and dtype of `x`.

    Raises:
      TypeError: If `key` is not a PRNG key.
      ValueError: If `padding` is negative, the shapes do not fit, or do not show which axis
        holds the channels.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> pad_crop_flip(jax.random.key(0), jnp.ones((2, 32, 32, 3), jnp.uint8)).shape
      (2, 32, 32, 3)
    """
    if batching.is_keys(x):
        raise TypeError(
            "pad_crop_flip got a key as its images: exchange the arguments, "
            "pad_crop_flip(key, x)."
        )
    typed = checks.check_key(key)
    if typed is None:
        raise TypeError("pad_crop_flip got no key: pass jax.random.key(seed).")
    x = jnp.asarray(x)
    if x.ndim != 4 or typed.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"pad_crop_flip got images {x.shape} and keys {typed.shape}; "
            "need images [B, H, W, C] and one key, or [B] keys."
        )
    if padding < 0:
        raise ValueError(f"padding={padding} pixels; need 0 or more.")
    keys = batching.per_example_keys(typed, x.shape[0])
    axis = _channel_axis(x.shape, channel_axis)
    images = jnp.moveaxis(x, axis, -1)
    images = jax.vmap(lambda k, image: _augment(k, image, padding, flip))(keys, images)
    return jnp.moveaxis(images, -1, axis)


def _channel_axis(shape: tuple[int, ...], axis: int | None) -> int:
    """Return 1 or 3, the axis of channels of images of this shape."""
    if axis is not None:
        if axis not in (1, 3, -1, -3):
            raise ValueError(
                f"channel_axis={axis}; give -1 for images [B, H, W, C], or 1 for "
                "[B, C, H, W]."
            )
        return axis % 4
    found = channels.axis_of(shape)
    if found is None:
        raise ValueError(
            f"pad_crop_flip got images {shape}, which do not show which axis holds the "
            "channels: say channel_axis=-1 for [B, H, W, C], or 1 for [B, C, H, W], as in "
            "functools.partial(pad_crop_flip, channel_axis=-1)."
        )
    return found


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
