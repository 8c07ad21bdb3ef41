"""A bias whose gradient is fast on the CPU.

The gradient of a bias is a sum over all axes but the last. In a training step XLA:CPU
(JAX 0.10.2) takes several axes in windows of 32, one after the other, which for a small
ConvNet was the dearest item of the step. Here it is given one long axis.

`spread_p` takes the arguments of `jax.lax.broadcast_in_dim_p` and has its value.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from jaxrobust._cpu.conv_primitive import is_sharded

spread_p = core.Primitive("fast_broadcast_in_dim")
spread_p.def_impl(lax.broadcast_in_dim_p.bind)
spread_p.abstract_eval = lax.broadcast_in_dim_p.abstract_eval
mlir.register_lowering(
    spread_p, mlir.lower_fun(lax.broadcast_in_dim_p.bind, multiple_results=False)
)


def spread(eqn) -> list:
    """Return the equations for an addition; those of [1, 1, 1, C] to [B, H, W, C] are two.

    The first spreads the bias, which `add` does by itself, and has another gradient.
    """
    full = eqn.outvars[0].aval if eqn.primitive is lax.add_p else None
    if full is None or full.ndim < 3 or not _is_usual(full):
        return [eqn]
    shapes = [v.aval.shape for v in eqn.invars]
    shape = (1,) * (full.ndim - 1) + full.shape[-1:]
    if shape not in shapes:
        return [eqn]
    i, bias = shapes.index(shape), core.Var(full)
    invars = [bias if j == i else v for j, v in enumerate(eqn.invars)]
    params = dict(
        shape=full.shape, broadcast_dimensions=tuple(range(full.ndim)), sharding=None
    )
    making = eqn.replace(
        primitive=spread_p, invars=[eqn.invars[i]], outvars=[bias], params=params
    )
    return [making, eqn.replace(invars=invars)]


def _is_usual(x) -> bool:
    is_float = x.dtype in (jnp.float32, jnp.float64)
    return is_float and x.shape[0] > 1 and 0 not in x.shape and not is_sharded(x)


def _transpose(g, bias, **_):
    # Without the barrier XLA sees the axes through the reshape.
    total = lax.optimization_barrier(g.reshape(-1, g.shape[-1])).sum(0)
    return [total.reshape(bias.aval.shape)]


ad.deflinear2(spread_p, _transpose)


def _batch(args, axes, **params):
    spread_each = functools.partial(lax.broadcast_in_dim_p.bind, **params)
    return jax.vmap(spread_each, axes)(*args), 0


batching.primitive_batchers[spread_p] = _batch
