"""A convolution with channels last on the CPU: the same sums in the fastest order.

XLA:CPU divides a convolution among its threads by blocks of output features only, unless
its rows are long: one with 64 features runs on one core. See docs/convolutions.md.
"""

import itertools
import math
import os

import jax.numpy as jnp
from jax import lax

from jaxrobust._cpu import winograd

# The features of one thread, in JAX 0.10.2.
_FEATURE_BLOCK = 64

# XLA:CPU multiplies an image row at a time; so short a row does not fill its registers.
_SHORT_ROW = 4

# More columns than that do not stay in the cache.
_COLUMN_BYTES = 2**23

# Pixels of a row that one product gives where each has few features.
_PIXELS = 4
FEW_CHANNELS = 3

NHWC = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, ("NHWC", "HWIO", "NHWC"))


def convolve(x, kernel, *, window_strides, padding, precision=None, form=None):
    """Return the convolution of images [B, H, W, C] with a kernel [h, w, C, F].

    `form`, one of `FORMS`, overrides the choice.
    """
    x, pads = cut(x, padding)
    size = tuple(
        (n + sum(pad) - k) // stride + 1
        for n, pad, k, stride in zip(
            x.shape[1:3], pads, kernel.shape, window_strides, strict=False
        )
    )
    form = form or _fastest(x, kernel, window_strides, size)
    return FORMS[form](x, kernel, window_strides, pads, size, precision)


def _fastest(x, kernel, strides, size) -> str:
    """Return the name of the form, by measurement."""
    if winograd.is_faster(x, kernel, strides, size):
        return "winograd"
    channels, features = kernel.shape[2:]
    num_columns = len(x) * math.prod(size) * math.prod(kernel.shape[:3])
    is_short = size[1] <= _SHORT_ROW or (channels <= FEW_CHANNELS and max(strides) > 1)
    if is_short and num_columns * x.dtype.itemsize <= _COLUMN_BYTES:
        return "product"
    if features <= FEW_CHANNELS and max(strides) == 1:
        return "several pixels"
    num_blocks = -(-kernel.shape[-1] // _FEATURE_BLOCK)
    # Blocks that cannot be divided evenly among the cores.
    if num_blocks % _num_cores() and len(x) > 1:
        return "side by side"
    return "direct"


def _num_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _direct(x, kernel, strides, pads, size, precision):
    """Return the convolution as XLA has it."""
    del size
    return lax.conv_general_dilated_p.bind(
        x,
        kernel,
        window_strides=strides,
        padding=pads,
        lhs_dilation=(1, 1),
        rhs_dilation=(1, 1),
        dimension_numbers=NHWC,
        feature_group_count=1,
        batch_group_count=1,
        precision=precision,
        preferred_element_type=None,
        out_sharding=None,
    )


def _product(x, kernel, strides, pads, size, precision):
    """Multiply the pixels of all windows by the kernel."""
    columns = windows(strides, pads, kernel.shape[:2], size, x)
    kernel = kernel.reshape(-1, kernel.shape[-1])
    columns = columns.reshape(-1, len(kernel))
    out = jnp.matmul(columns, kernel, precision=precision)
    return out.reshape(len(x), *size, -1)


def _side_by_side(x, kernel, strides, pads, size, precision):
    """Convolve one wide image that has all the images side by side.

    Its long rows are divided among the threads. Zeros between two neighbours are the
    padding of both.
    """
    batch, _, width, channels = x.shape
    (low, high), stride = pads[1], strides[1]
    step = max(width + max(low, high), size[1] * stride)
    step = -(-step // stride) * stride  # the next image begins at a window
    x = pad(x, ((0, 0), (0, step - width)))
    x = x.transpose(1, 0, 2, 3).reshape(1, -1, batch * step, channels)
    # As many windows as one image has, `step / stride`, for each.
    end = max(0, kernel.shape[1] - stride - low)
    out = _direct(x, kernel, strides, (pads[0], (low, end)), size, precision)
    out = out[0, :, : batch * step // stride]
    out = out.reshape(size[0], batch, step // stride, -1)[:, :, : size[1]]
    return out.transpose(1, 0, 2, 3)


def _several_pixels(x, kernel, strides, pads, size, precision):
    """Take neighbours in a row for features of one window that is wider.

    A product with one or three features is little more than the reading of its columns,
    which neighbours nearly share.
    """
    stride, more = strides[1], -size[1] % _PIXELS
    pads = (pads[0], (pads[1][0], pads[1][1] + more * stride))
    shifts = [(n * stride, (_PIXELS - 1 - n) * stride) for n in range(_PIXELS)]
    wide = jnp.stack(
        [jnp.pad(kernel, ((0, 0), shift, (0, 0), (0, 0))) for shift in shifts], axis=3
    )
    # Made once, before a loop around.
    wide = lax.optimization_barrier(wide.reshape(*wide.shape[:3], -1))
    strides = (strides[0], _PIXELS * stride)
    blocks = (size[0], (size[1] + more) // _PIXELS)
    form = _side_by_side if len(x) > 1 else _direct
    out = form(x, wide, strides, pads, blocks, precision)
    return out.reshape(len(x), size[0], size[1] + more, -1)[:, :, : size[1]]


FORMS = {
    "direct": _direct,
    "side by side": _side_by_side,
    "several pixels": _several_pixels,
    "product": _product,
    "winograd": winograd.convolve,
}


def windows(strides, pads, taps, size, x):
    """Return the pixels that every window reads, [B, H', W', columns]."""
    x = pad(x, pads)
    ends = [(n - 1) * stride + 1 for n, stride in zip(size, strides, strict=True)]
    places = itertools.product(range(taps[0]), range(taps[1]))
    patches = [
        x[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]]
        for i, j in places
    ]
    return jnp.concatenate(patches, axis=-1)


def pad(x, pads, interior=(0, 0)):
    """Pad the spatial axes with zeros; a negative padding cuts off."""
    spatial = (
        (low, high, gap) for (low, high), gap in zip(pads, interior, strict=True)
    )
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *spatial, (0, 0, 0)))


def cut(x, pads):
    """Replace negative paddings by a smaller image, and return both.

    XLA:CPU reads outside of the image where a padding is negative (JAX 0.10.2).
    """
    cuts = tuple((min(low, 0), min(high, 0)) for low, high in pads)
    if all(each == (0, 0) for each in cuts):
        return x, tuple(pads)
    return pad(x, cuts), tuple((max(low, 0), max(high, 0)) for low, high in pads)
