"""A 2-D convolution whose gradients are fast on the CPU inside `jax.lax.scan`.

XLA:CPU runs a convolution at full speed, in a loop or not, if it is *canonical*:
channels last, unit dilation, kernel not mirrored. The two gradients that JAX derives
are not canonical; in the body of a `while` loop XLA:CPU then falls back to scalar
loops, 5 to 15 times slower for the input gradient and 20 to 80 times for the kernel
gradient. Attacks are such loops. Here the same two gradients are written with
canonical convolutions and matrix products; the forward pass stays XLA's.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")

# With so few input channels a mirrored convolution, which has them as outputs, loses to
# scattering: measured for 1, 3, 16, 32 and 64 channels.
_FEW_CHANNELS = 4

# The kernel gradient copies every pixel once for each tap that reads it, for so many
# images at a time that the copies stay in the cache: 2 to 8 MiB are equally fast, all
# 100 images of a batch together take up to twice as long.
_BLOCK_BYTES = 2**22


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` with gradients that are fast on the CPU.

    The value is XLA's own on every platform. The gradients differ from those of
    `jax.lax` only on the CPU, and there only for float32 or float64 NHWC/HWIO 2-D
    convolutions without dilation or groups, by rounding. Such a convolution can be
    differentiated in reverse mode any number of times, and forward over reverse
    (`jax.hessian`), but not in forward mode alone (`jax.jvp`): for that, use
    `jax.lax.conv_general_dilated` itself.

    Args:
        lhs: images, [B, H, W, C] for the fast path.
        rhs: kernel, [kernel_height, kernel_width, C, features] for the fast path.
        window_strides: steps of the window, one per spatial axis.
        padding: "SAME", "VALID", "SAME_LOWER" or (low, high) per spatial axis.
        lhs_dilation: see `jax.lax.conv_general_dilated`.
        rhs_dilation: see `jax.lax.conv_general_dilated`.
        dimension_numbers: see `jax.lax.conv_general_dilated`.
        feature_group_count: see `jax.lax.conv_general_dilated`.
        batch_group_count: see `jax.lax.conv_general_dilated`.
        precision: see `jax.lax.conv_general_dilated`; it holds for the gradients too.
        preferred_element_type: see `jax.lax.conv_general_dilated`.
        out_sharding: see `jax.lax.conv_general_dilated`.

    Returns:
        The convolved images, [B, H', W', features] for the fast path.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> options = {"conv_general_dilated": conv_general_dilated}
        >>> layer = nnx.Conv(3, 8, (3, 3), **options, rngs=nnx.Rngs(0))
        >>> layer(jnp.zeros((2, 32, 32, 3))).shape
        (2, 32, 32, 8)
    """
    is_plain = (
        (lhs_dilation is None or set(lhs_dilation) == {1})
        and (rhs_dilation is None or set(rhs_dilation) == {1})
        and feature_group_count == batch_group_count == 1
        and preferred_element_type is None
        and out_sharding is None
        and _is_canonical(lhs, rhs, dimension_numbers)
        and not (_is_sharded(lhs) or _is_sharded(rhs))
    )
    if not is_plain:
        # `out_sharding` is passed on only when given: older JAX does not know it.
        optional = {} if out_sharding is None else {"out_sharding": out_sharding}
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            batch_group_count=batch_group_count,
            precision=precision,
            preferred_element_type=preferred_element_type,
            **optional,
        )
    strides = tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(
            lhs.shape[1:3], rhs.shape[:2], strides, padding.upper()
        )
    pads = tuple((int(low), int(high)) for low, high in padding)
    lhs, pads = _cut(lhs, pads)
    return _conv(strides, pads, precision, lhs, rhs)


def _is_sharded(array: jax.Array) -> bool:
    """Whether the type names mesh axes: products would need an output sharding."""
    return any(axis is not None for axis in jax.typeof(array).sharding.spec)


def _cut(x, pads):
    """Replaces negative paddings by a smaller image, and returns both.

    XLA:CPU reads outside of the image where a padding is negative (JAX 0.10.2).
    """
    cuts = tuple((min(low, 0), min(high, 0)) for low, high in pads)
    if all(cut == (0, 0) for cut in cuts):
        return x, pads
    return _pad(x, cuts), tuple((max(low, 0), max(high, 0)) for low, high in pads)


def _pad(x, pads, interior=(0, 0)):
    """Pads the spatial axes with zeros; a negative padding cuts off."""
    spatial = (
        (low, high, gap) for (low, high), gap in zip(pads, interior, strict=True)
    )
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *spatial, (0, 0, 0)))


def _is_canonical(lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any) -> bool:
    if lhs.ndim != 4 or rhs.ndim != 4 or 0 in (*lhs.shape, *rhs.shape):
        return False
    if lhs.dtype != rhs.dtype or lhs.dtype not in (jnp.float32, jnp.float64):
        return False
    given = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    return given == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)


def _lax_conv(strides, pads, precision, x, kernel):
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=_LAYOUT, precision=precision
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _conv(strides, pads, precision, x, kernel):
    return _lax_conv(strides, pads, precision, x, kernel)


def _conv_forward(strides, pads, precision, x, kernel):
    return _lax_conv(strides, pads, precision, x, kernel), (x, kernel)


def _conv_backward(strides, pads, precision, residuals, cotangent):
    def on_cpu(x, kernel, g):
        if strides == (1, 1) and kernel.shape[2] > _FEW_CHANNELS:
            dx = _input_gradient_by_conv(pads, precision, x, kernel, g)
        else:
            dx = _input_gradient_by_scatter(strides, pads, precision, x, kernel, g)
        dw = _kernel_gradient(strides, pads, precision, x, kernel, g)
        # Adds up, under `shard_map`, what a replicated argument did on each device.
        return jax.vjp(_vary_together, x, kernel)[1]((dx, dw))

    def elsewhere(x, kernel, g):
        conv = functools.partial(_lax_conv, strides, pads, precision)
        return jax.vjp(conv, x, kernel)[1](g)

    return lax.platform_dependent(*residuals, cotangent, cpu=on_cpu, default=elsewhere)


_conv.defvjp(_conv_forward, _conv_backward)


def _vary_together(*arrays):
    """Under `shard_map`, makes all arrays vary over the mesh axes that any varies over.

    Otherwise it is the identity, and removed by XLA: the condition is constant.
    """
    fill = sum(lax.stop_gradient(array[(0,) * array.ndim]) for array in arrays)
    return tuple(jnp.where(True, array, fill) for array in arrays)


def _input_gradient_by_conv(pads, precision, x, kernel, g):
    """Convolves the cotangent with the mirrored kernel; strides must be 1."""
    mirrored = kernel[::-1, ::-1].swapaxes(2, 3)
    low = [kernel.shape[a] - 1 - pads[a][0] for a in (0, 1)]
    high = [x.shape[1 + a] + pads[a][0] - g.shape[1 + a] for a in (0, 1)]
    g, pads = _cut(g, tuple(zip(low, high, strict=True)))
    # Not `_conv`, which would have no forward derivative (`jax.hessian`).
    return _lax_conv((1, 1), pads, precision, g, mirrored)


def _input_gradient_by_scatter(strides, pads, precision, x, kernel, g):
    """Multiplies the cotangent by every tap and adds each result where it was read."""
    height, width, channels, features = kernel.shape
    columns = jnp.matmul(g, kernel.reshape(-1, features).T, precision=precision)
    columns = columns.reshape(*g.shape[:3], height * width, channels)
    taps = list(itertools.product(range(height), range(width)))

    def place(tap: tuple[int, int], a: int) -> tuple[int, int]:
        low = tap[a] - pads[a][0]
        return low, x.shape[1 + a] - low - (g.shape[1 + a] - 1) * strides[a] - 1

    gaps = [stride - 1 for stride in strides]
    return sum(
        _pad(columns[..., n, :], (place(tap, 0), place(tap, 1)), gaps)
        for n, tap in enumerate(taps)
    )


def _kernel_gradient(strides, pads, precision, x, kernel, g):
    """Multiplies the columns by the cotangent, a few images at a time."""
    num_columns = g[0, ..., 0].size * kernel[..., 0].size
    most = max(1, _BLOCK_BYTES // (num_columns * x.dtype.itemsize))
    num_blocks = -(-len(x) // most)
    size = -(-len(x) // num_blocks)
    # Images of zeros fill up the last block.
    fill = ((0, num_blocks * size - len(x)), (0, 0), (0, 0), (0, 0))

    def in_blocks(array):
        return jnp.pad(array, fill).reshape(num_blocks, size, *array.shape[1:])

    def add(total, block):
        columns = _columns(strides, pads, block[0], kernel.shape, g.shape)
        product = jnp.tensordot(columns, block[1], axes=3, precision=precision)
        return total + product.reshape(kernel.shape), None

    zeros, *_ = _vary_together(jnp.zeros_like(kernel), x, g)
    return lax.scan(add, zeros, (in_blocks(x), in_blocks(g)))[0]


def _columns(strides, pads, x, kernel_shape, out_shape):
    """Returns the pixels that every window reads, [columns, B, H', W']."""
    (height, width, channels), (rows, columns) = kernel_shape[:3], out_shape[1:3]
    x = _pad(x, pads)
    patches = [
        lax.slice(
            x,
            (0, i, j, 0),
            (
                len(x),
                i + (rows - 1) * strides[0] + 1,
                j + (columns - 1) * strides[1] + 1,
                channels,
            ),
            (1, *strides, 1),
        )
        for i, j in itertools.product(range(height), range(width))
    ]
    return jnp.moveaxis(jnp.concatenate(patches, axis=-1), -1, 0)
