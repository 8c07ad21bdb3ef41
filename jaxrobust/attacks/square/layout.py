"""Which axis of a batch holds the channels, and examples seen as images `[B, H, W, C]`."""

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxrobust._core import channels
from jaxrobust.types import Array

ChannelAxis = int | None | Literal["auto"]


def check(channel_axis: Any, name: str) -> None:
    """Raise where something else was given for `channel_axis` of the attack `name`."""
    if channel_axis is None or channel_axis == "auto":
        return
    if isinstance(channel_axis, bool) or not isinstance(channel_axis, int):
        raise ValueError(
            f"{name}(channel_axis={channel_axis!r}): an axis of the batch is needed (-1 "
            "for [B, H, W, C], 1 for [B, C, H, W]), None if every axis is one of pixels, "
            'or "auto".'
        )


def channels_of(shape: tuple[int, ...], channel_axis: ChannelAxis) -> int | None:
    """Return the axis `1 <= axis < ndim` of the channels of a batch, None without any.

    "auto" takes the first or last axis of an example for the channels where it has at most
    4 entries and the other more. A vector is a row of pixels.

    Args:
      shape: The shape of the batch, `[B, ...]`.
      channel_axis: What the user has said.

    Raises:
      ValueError: If there is no such axis, or "auto" cannot tell.
    """
    if channel_axis is None or (channel_axis == "auto" and len(shape) <= 2):
        return None
    if channel_axis == "auto":
        found = channels.axis_of(shape)
        if found is None:
            raise ValueError(_ambiguous(shape))
        return found
    axis = channel_axis + len(shape) if channel_axis < 0 else channel_axis
    if not 1 <= axis < len(shape) or len(shape) == 2:
        instead = "None" if len(shape) == 2 else f"None, -1 or 1 to {len(shape) - 1}"
        raise ValueError(
            f"channel_axis={channel_axis} is not an axis of channels in x of shape "
            f"{shape}: axis 0 is the batch, and at least one axis holds pixels. Pass "
            f"channel_axis={instead}."
        )
    return axis


def to_images(x: Array, axis: int | None) -> Array:
    """Return `x [B, ...]` as images `[B, H, W, C]`, with the channels taken from `axis`.

    One axis of pixels is a row; of more than two the leading ones are rows.
    """
    x = x[..., None] if axis is None else jnp.moveaxis(x, axis, -1)
    return x.reshape(x.shape[0], *image_shape(x.shape[1:]))


def from_images(images: Array, shape: tuple[int, ...], axis: int | None) -> Array:
    """Undo `to_images`: return a batch of the given shape."""
    if axis is None:
        return images.reshape(shape)
    last = (*shape[:axis], *shape[axis + 1 :], shape[axis])
    return jnp.moveaxis(images.reshape(last), -1, axis)


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return `(H, W, C)` of an example whose last axis holds the channels."""
    *rows, columns, channels = shape if len(shape) > 1 else (1, *shape)
    return int(np.prod(rows)), columns, channels


def _ambiguous(shape: tuple[int, ...]) -> str:
    return (
        f"x has shape {shape}, which does not show which axis holds the channels, and the "
        "windows of Square lie on the others. Say it, in Square(channel_axis=...) or "
        "autoattack(channel_axis=...): -1 if channels are last ([B, H, W, C]), 1 if they "
        "are first ([B, C, H, W]), None if there are none (grey images [B, H, W])."
    )
