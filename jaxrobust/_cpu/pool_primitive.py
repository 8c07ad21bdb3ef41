"""Max-pooling whose gradient is fast on the CPU.

XLA:CPU runs JAX's gradient of max-pooling, `select_and_scatter`, one window after the
other. `max_pool_p` takes the arguments of `jax.lax.reduce_window_max_p`, and has its value
and its gradient: of several equal pixels the first one counts.
"""

import itertools

import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxrobust._cpu.conv_primitive import is_sharded

max_pool_p = Primitive("fast_reduce_window_max")
max_pool_p.def_impl(lax.reduce_window_max_p.bind)
max_pool_p.abstract_eval = lax.reduce_window_max_p.abstract_eval
mlir.register_lowering(
    max_pool_p, mlir.lower_fun(lax.reduce_window_max_p.bind, multiple_results=False)
)


def is_eligible(types, params) -> bool:
    """Whether `max_pool_p` has a formula for this; the last type is the result's."""
    x, out = types
    dilations = (*params["base_dilation"], *params["window_dilation"])
    return (
        0 not in (*x.shape, *out.shape)
        and x.dtype in (jnp.float32, jnp.float64)
        and set(dilations) <= {1}
        and not is_sharded(x)
    )


def _jvp(primals, tangents, **params):
    """Take, in each window, the tangent of the first pixel that attains the maximum."""
    (x,), (dx,) = primals, tangents
    out = max_pool_p.bind(x, **params)
    is_taken = jnp.zeros(out.shape, bool)
    total = jnp.zeros_like(out)
    taps = zip(_taps(x, -jnp.inf, params), _taps(dx, 0, params), strict=True)
    for pixel, tangent in taps:
        is_first = (pixel == out) & ~is_taken
        is_taken |= is_first
        total += jnp.where(is_first, tangent, 0)
    return out, total


ad.primitive_jvps[max_pool_p] = _jvp


def _taps(x, fill, params):
    """Yield, for each place in the window, the pixels that all windows have there."""
    strides, sizes = params["window_strides"], params["window_dimensions"]
    x = lax.pad(x, jnp.array(fill, x.dtype), [(*pad, 0) for pad in params["padding"]])
    counts = [(n - k) // s + 1 for n, k, s in zip(x.shape, sizes, strides, strict=True)]
    for start in itertools.product(*map(range, sizes)):
        triples = zip(start, counts, strides, strict=True)
        limit = [first + (n - 1) * s + 1 for first, n, s in triples]
        yield lax.slice(x, start, limit, strides)


def _batch(args, axes, **params):
    """Pool nothing along the batch axis."""
    (x,), (axis,) = args, axes

    def insert(values, value):
        return (*values[:axis], value, *values[axis:])

    params = {
        name: insert(values, (0, 0) if name == "padding" else 1)
        for name, values in params.items()
    }
    return max_pool_p.bind(x, **params), axis


batching.primitive_batchers[max_pool_p] = _batch
