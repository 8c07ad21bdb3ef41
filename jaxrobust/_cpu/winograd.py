"""A 3 x 3 convolution with 16 products for four pixels instead of 36.

F(2x2, 3x3) of Lavin and Gray 2016 (arXiv:1509.09308): Y = A' [(G k G') * (B' d B)] A for
each tile d of 4 x 4 pixels, where * multiplies each of the 16 entries as matrices over
the channels. Its rounding is that of the sums of a tile: as large as a plain
convolution's on average, but a pixel also rounds the results beside its window.
"""

import math

import jax.numpy as jnp
from jax import lax

# Fewer channels and the transforms cost more than the products that they save.
_FEWEST_CHANNELS = 128

# Fewer tiles do not fill the matrix products.
_FEWEST_TILES = 256

# The transformed tiles of one block of images: they stay in the cache.
_BLOCK_BYTES = 2**23


def is_faster(x, kernel, strides, size) -> bool:
    """Whether the transforms pay for a convolution with results of this size."""
    return (
        kernel.shape[:2] == (3, 3)
        and tuple(strides) == (1, 1)
        and min(kernel.shape[2:]) >= _FEWEST_CHANNELS
        and all(n % 2 == 0 for n in size)
        and len(x) * math.prod(size) // 4 >= _FEWEST_TILES
    )


def convolve(x, kernel, strides, pads, size, precision):
    """Return the convolution of images [B, H, W, C], a few at a time."""
    del strides  # 1
    transformed = _transform_kernel(kernel)
    tile_bytes = 16 * (math.prod(size) // 4) * x.shape[-1] * x.dtype.itemsize
    limit = max(_BLOCK_BYTES, transformed.size * x.dtype.itemsize)
    num_blocks = count_blocks(len(x), limit // tile_bytes)

    def convolve_block(x):
        # Padding all images before this loop took half as long again.
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        return _convolve_block(x, transformed, size, precision)

    if num_blocks == 1:
        return convolve_block(x)
    out = lax.map(convolve_block, in_blocks(x, num_blocks))
    return out.reshape(-1, *out.shape[2:])[: len(x)]


def count_blocks(num_images: int, most: int) -> int:
    """Return the fewest blocks of at most so many images, rather of equal size.

    Filling up the last block copies all images.
    """
    fewest = -(-num_images // max(1, most))
    counts = range(fewest, min(2 * fewest, num_images) + 1)
    return next((count for count in counts if num_images % count == 0), fewest)


def in_blocks(x, num_blocks):
    """Return the images in blocks of equal size; zeros fill up the last one."""
    block_size = -(-len(x) // num_blocks)
    fill = num_blocks * block_size - len(x)
    x = jnp.pad(x, ((0, fill), *[(0, 0)] * (x.ndim - 1)))
    return x.reshape(num_blocks, block_size, *x.shape[1:])


def _convolve_block(x, kernel, size, precision):
    rows, columns = size
    along = _transform_tile([x[:, i : i + rows : 2] for i in range(4)])
    tiles = [
        entry
        for row in along
        for entry in _transform_tile([row[:, :, j : j + columns : 2] for j in range(4)])
    ]
    tiles = jnp.stack(tiles).reshape(16, -1, x.shape[-1])
    products = jnp.matmul(tiles, kernel, precision=precision)
    products = products.reshape(4, 4, len(x), rows // 2, columns // 2, -1)
    along = [_transform_result(products[a]) for a in range(4)]
    # Two rows and two columns of results for each tile, interleaved.
    out = [
        jnp.stack(_transform_result([row[j] for row in along]), axis=2)
        for j in range(2)
    ]
    return jnp.stack(out, axis=4).reshape(len(x), rows, columns, -1)


def _transform_tile(d):
    """B' d along one axis."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _transform_result(m):
    """Return A' m along one axis."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _transform_kernel(kernel):
    """G k G', [16, C, F]."""
    for axis in (0, 1):
        first, middle, last = jnp.moveaxis(kernel, axis, 0)
        ends, half = (first + last) / 2, middle / 2
        kernel = jnp.stack([first, ends + half, ends - half, last], axis=axis)
    return kernel.reshape(16, *kernel.shape[2:])
