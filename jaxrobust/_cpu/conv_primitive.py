"""A 2-D convolution whose gradients, and the gradients of these, are fast on the CPU.

XLA:CPU runs a convolution at full speed, in a loop or not, if it is *canonical*:
channels last, unit dilation, kernel not mirrored. In the body of a `while` loop it runs
any other as scalar loops, 5 to 80 times slower. The two gradients that JAX derives are not
canonical, nor is a layout with channels first. Attacks are such loops.

`conv_p` takes the arguments of `jax.lax.conv_general_dilated_p` and has its value. Being
bilinear, it needs two rules, its transposes; they are written below with canonical
convolutions and matrix products. JAX derives forward mode, reverse mode and all orders.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxrobust._cpu.conv_forward import FEW_CHANNELS, NHWC, convolve, cut, pad, windows
from jaxrobust._cpu.winograd import count_blocks, in_blocks

# Above it a strided input gradient by phases loses to scattering, as with a few channels:
# measured for 1 to 512 input channels, even at 64 to 128.
_MOST_PHASE_CHANNELS = 64

# The formulas write out each tap, and a kernel as large as the image, which JAX's own
# kernel gradients have, would be a long program. 11 x 11 is the largest in common use.
_MOST_TAPS = 121

# The kernel gradient copies every pixel once for each tap that reads it, for so many
# images at a time that the copies stay in the cache: 8 MiB was the fastest of 1 to 16 for
# most layers, all images of a batch together the slowest.
_BLOCK_BYTES = 2**23

conv_p = Primitive("fast_conv_general_dilated")
conv_p.def_impl(lax.conv_general_dilated_p.bind)
conv_p.abstract_eval = lax.conv_general_dilated_p.abstract_eval


def is_eligible(types, params) -> bool:
    """Whether `conv_p` has formulas for this convolution; the last type is the result's."""
    x, kernel, out = types
    accumulated = params["preferred_element_type"]
    # Not `in (None, x.dtype)`: NumPy takes None for float64.
    accumulated = x.dtype if accumulated is None else accumulated
    dilations = (*params["lhs_dilation"], *params["rhs_dilation"])
    return (
        len(x.shape) == 4
        and 0 not in (*x.shape, *kernel.shape, *out.shape)
        and _num_taps(kernel, params) <= _MOST_TAPS
        and x.dtype == kernel.dtype
        and x.dtype in (jnp.float32, jnp.float64)
        and accumulated == x.dtype
        and set(dilations) == {1}
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and not (is_sharded(x) or is_sharded(kernel))
    )


def _num_taps(kernel, params) -> int:
    return math.prod(kernel.shape[axis] for axis in params["dimension_numbers"][1][2:])


def is_sharded(aval) -> bool:
    """Whether the type names mesh axes: products would need an output sharding."""
    return any(axis is not None for axis in aval.sharding.spec)


def _convolve(x, kernel, strides, pads, precision):
    """Return the canonical convolution."""
    return conv_p.bind(
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


def _forward(x, kernel, *, window_strides, padding, dimension_numbers, precision, **_):
    """Return the value, with channels last; the other parameters are trivial."""
    specs = dimension_numbers
    x, kernel = _to_nhwc(x, specs.lhs_spec), _to_hwio(kernel, specs.rhs_spec)
    out = convolve(
        x, kernel, window_strides=window_strides, padding=padding, precision=precision
    )
    return _from_nhwc(out, specs.out_spec)


mlir.register_lowering(conv_p, mlir.lower_fun(_forward, multiple_results=False))


def _transpose_x(g, x, kernel, **params):
    specs = params["dimension_numbers"]
    size = [x.aval.shape[axis] for axis in specs.lhs_spec[2:]]
    kernel, g = _to_hwio(kernel, specs.rhs_spec), _to_nhwc(g, specs.out_spec)
    dx = _input_gradient(*_settings(params), size, kernel, g)
    return _from_nhwc(dx, specs.lhs_spec)


def _transpose_kernel(g, x, kernel, **params):
    specs = params["dimension_numbers"]
    size = [kernel.aval.shape[axis] for axis in specs.rhs_spec[2:]]
    x, g = _to_nhwc(x, specs.lhs_spec), _to_nhwc(g, specs.out_spec)
    dw = _kernel_gradient(*_settings(params), size, x, g)
    return lax.transpose(dw, _inverse((3, 2, 0, 1), specs.rhs_spec))


ad.defbilinear(conv_p, _transpose_x, _transpose_kernel)


def _batch(args, axes, **params):
    """Fold a batched input into the batch, a batched kernel into the features."""
    (x, kernel), (x_axis, kernel_axis) = args, axes
    specs = params["dimension_numbers"]
    if x_axis is not None and kernel_axis is not None:
        # One kernel for each: a grouped convolution, which has no formulas here.
        bind = functools.partial(lax.conv_general_dilated_p.bind, **params)
        return jax.vmap(bind, axes)(x, kernel), 0
    if kernel_axis is None:
        num, x = x.shape[x_axis], _fold(x, x_axis, specs.lhs_spec[0])
        axis = specs.out_spec[0]
    else:
        num = kernel.shape[kernel_axis]
        kernel = _fold(kernel, kernel_axis, specs.rhs_spec[0])
        axis = specs.out_spec[1]
    out = conv_p.bind(x, kernel, **params)
    return out.reshape(*out.shape[:axis], num, -1, *out.shape[axis + 1 :]), axis


batching.primitive_batchers[conv_p] = _batch


def _fold(array, batch_axis, axis):
    """Merge the batch axis into an axis that is counted without it."""
    array = jnp.moveaxis(array, batch_axis, axis)
    return array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])


def _settings(params):
    return params["window_strides"], params["padding"], params["precision"]


def _to_nhwc(array, spec):
    batch, channels, height, width = spec
    return lax.transpose(array, (batch, height, width, channels))


def _from_nhwc(array, spec):
    return lax.transpose(array, _inverse((0, 3, 1, 2), spec))


def _to_hwio(kernel, spec):
    features, channels, height, width = spec
    return lax.transpose(kernel, (height, width, channels, features))


def _inverse(canonical, spec):
    """Return the order that puts axis `canonical[i]` at position `spec[i]`."""
    return tuple(canonical[spec.index(position)] for position in range(4))


def _input_gradient(strides, pads, precision, size, kernel, g):
    """Choose, by measurement, between the two forms."""
    is_strided = math.prod(strides) > 1
    # A phase that no tap reaches would be a convolution without a kernel.
    has_empty_phase = any(k < s for k, s in zip(kernel.shape, strides, strict=False))
    few_or_many = not FEW_CHANNELS < kernel.shape[2] <= _MOST_PHASE_CHANNELS
    if is_strided and (has_empty_phase or few_or_many):
        return _input_gradient_by_scatter(strides, pads, precision, size, kernel, g)
    return _input_gradient_by_phases(strides, pads, precision, size, kernel, g)


def _input_gradient_by_phases(strides, pads, precision, size, kernel, g):
    """Convolve the cotangent with the mirrored kernel, once for each phase.

    The pixels q = s m + r of the padded image with one remainder r read
    dx[q] = sum_t g[m - t] kernel[s t + r], a convolution without stride. All s_0 s_1
    phases are features of one convolution, and are then interleaved. Stride 1: one phase.
    """
    channels, features = kernel.shape[2:]
    taps = [-(-k // s) for k, s in zip(kernel.shape, strides, strict=False)]
    ends = [
        (0, t * s - k) for t, s, k in zip(taps, strides, kernel.shape, strict=False)
    ]
    kernel = jnp.pad(kernel, (*ends, (0, 0), (0, 0)))
    kernel = kernel.reshape(
        taps[0], strides[0], taps[1], strides[1], channels, features
    )
    kernel = kernel[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4)
    # Without the barrier XLA moves the mirror into the convolution and makes it again in
    # every turn of a loop around.
    kernel = lax.optimization_barrier(kernel.reshape(*taps, features, -1))
    # The pixels of the image are q = low .. low + n - 1, m = first .. last.
    first = [low // s for (low, _), s in zip(pads, strides, strict=True)]
    last = [
        (low + n - 1) // s for (low, _), n, s in zip(pads, size, strides, strict=True)
    ]
    around = [(taps[a] - 1 - first[a], last[a] + 1 - g.shape[1 + a]) for a in range(2)]
    g, around = cut(g, around)
    dx = _convolve(g, kernel, (1, 1), around, precision)
    batch, rows, columns = dx.shape[:3]
    dx = dx.reshape(batch, rows, columns, *strides, channels)
    dx = dx.transpose(0, 1, 3, 2, 4, 5)
    dx = dx.reshape(batch, rows * strides[0], columns * strides[1], channels)
    start = [low - m * s for (low, _), m, s in zip(pads, first, strides, strict=True)]
    return dx[:, start[0] : start[0] + size[0], start[1] : start[1] + size[1]]


def _input_gradient_by_scatter(strides, pads, precision, size, kernel, g):
    """Multiply the cotangent by every tap and add each result where it was read."""
    height, width, channels, features = kernel.shape
    columns = jnp.matmul(g, kernel.reshape(-1, features).T, precision=precision)
    columns = columns.reshape(*g.shape[:3], height * width, channels)
    taps = list(itertools.product(range(height), range(width)))

    def place(tap: tuple[int, int], a: int) -> tuple[int, int]:
        low = tap[a] - pads[a][0]
        return low, size[a] - low - (g.shape[1 + a] - 1) * strides[a] - 1

    gaps = [stride - 1 for stride in strides]
    return sum(
        pad(columns[..., n, :], (place(tap, 0), place(tap, 1)), gaps)
        for n, tap in enumerate(taps)
    )


def _kernel_gradient(strides, pads, precision, size, x, g):
    """Multiply the columns by the cotangent, a few images at a time."""
    shape = (g.shape[-1], *size, x.shape[-1])
    num_columns = math.prod(shape[1:])
    most = _BLOCK_BYTES // (g[0, ..., 0].size * num_columns * x.dtype.itemsize)
    num_blocks = count_blocks(len(x), most)

    def add(total, block):
        columns = windows(strides, pads, size, g.shape[1:3], block[0])
        columns = columns.reshape(-1, num_columns)
        # Of the two factors the smaller one is transposed.
        g_transposed = block[1].reshape(-1, shape[0]).T
        return total + jnp.matmul(g_transposed, columns, precision=precision), None

    # Zeros that vary, under `shard_map`, over the mesh axes that the data vary over; the
    # condition is constant, so that XLA removes the data.
    seed = lax.stop_gradient(x[0, 0, 0, 0] + g[0, 0, 0, 0])
    zeros = jnp.where(True, jnp.zeros((shape[0], num_columns), x.dtype), seed)
    blocks = in_blocks(x, num_blocks), in_blocks(g, num_blocks)
    return lax.scan(add, zeros, blocks)[0].reshape(shape).transpose(1, 2, 3, 0)
