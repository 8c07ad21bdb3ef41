"""A function transform that makes the gradients of convolutions fast on the CPU.

`fast_convolutions(fn)` traces `fn`, exchanges each eligible convolution, bias and
max-pooling in its jaxpr for a primitive of equal value whose gradients XLA:CPU runs fast,
and runs the result. Everything else stays as it was.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import numpy as np
from jax import lax
from jax.extend import linear_util

from jaxrobust._core import cpu
from jaxrobust._core.jaxpr import equations, is_jaxpr, opened
from jaxrobust._cpu import bias_primitive, conv_primitive, pool_primitive

# Primitives that run the jaxprs in their parameters as they are.
_TRANSPARENT = {"jit", "closed_call", "scan", "while", "cond", "remat2", "checkpoint"}
_TRANSPARENT |= {"custom_jvp_call", "custom_vjp_call"}

# Parameters with derivative rules of the user that make a program when asked for it.
_MAKERS = ("jvp_jaxpr_fun", "fwd_jaxpr_thunk")

# The name of the scope whose convolutions stay as they are.
_PLAIN = "plain_convolutions"


def fast_convolutions(fn: Callable) -> Callable:
    """Make the gradients of all convolutions and max-poolings in `fn` fast on the CPU.

    The convolutions may be anybody's: Flax, Equinox, Haiku, `jax.lax`. Two-dimensional
    ones in float32 or float64 without groups and dilation are exchanged, in any layout,
    also inside `jit`, `scan`, `while`, `cond`, `checkpoint`, `custom_jvp` and `custom_vjp`
    (with the rules of these); all others, and those inside `shard_map`, stay as they are.
    Values and derivatives of every kind and order are equal to rounding. Where the default
    device is not a CPU, or `fn` cannot be traced, `fn` is called as it is.

    Attacks, evaluation and training apply it by themselves. `plain_convolutions(fn)`
    turns it off for a function, the environment variable `JAXROBUST_PLAIN_CONVOLUTIONS=1`
    for the process.

    Args:
      fn: A pure function. Array arguments are traced; other arguments are static. Nothing
        is cached: each call traces `fn`, so call the result inside `jax.jit`.

    Returns:
      A function with the arguments and the results of `fn`, a `jax.tree_util.Partial` that
      holds the arrays of `fn`, if that is a pytree.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def blur(x):  # images [B, C, H, W]
      ...     return jax.lax.conv(x, jnp.full((1, 1, 3, 3), 1 / 9), (1, 1), "SAME")
      >>> x = jnp.ones((1, 1, 5, 5))
      >>> print(jax.jit(jax.grad(lambda x: fast_convolutions(blur)(x).sum()))(x)[0, 0, 0])
      [0.44444445 0.6666667  0.6666667  0.6666667  0.44444445]
    """
    if isinstance(fn, jax.tree_util.Partial) and fn.func in (_fast, _plain):
        return fn
    return _inside(fast_convolutions, fn) or jax.tree_util.Partial(_fast, fn)


def plain_convolutions(fn: Callable) -> Callable:
    """Mark a function so that its convolutions stay those of XLA.

    Args:
      fn: Any function, such as the `logits_fn` that is given to an attack, or a part of
        one.

    Returns:
      The same function, which `fast_convolutions` does not touch.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> x, y = jnp.array([[0.25, 0.5]]), jnp.array([1])
      >>> print(jr.fgsm(plain_convolutions(lambda x: x), x, y, threat=jr.Linf(0.25)))
      [[0.5  0.25]]
    """
    return _inside(plain_convolutions, fn) or jax.tree_util.Partial(_plain, fn)


def _inside(mark: Callable, fn: Callable) -> Callable | None:
    """Return an expectation with its model marked: attacks and evaluation know its type."""
    from jaxrobust.surrogates.expectation import Expectation

    if not isinstance(fn, Expectation):
        return None
    return dataclasses.replace(fn, model_fn=mark(fn.model_fn))


def is_slow_in_loops(fn: Callable, *args: Any) -> bool:
    """Whether a loop around `fn` would hold convolutions that XLA:CPU runs slowly there.

    Args:
      fn: A pure function, with `fast_convolutions` where that is to be applied.
      *args: Its arguments, or `jax.ShapeDtypeStruct`s.

    Returns:
      Whether any convolution is left as it was; on other platforms False.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def blur(x, kernel):
      ...     return jax.lax.conv(x, kernel, (1, 1), "SAME")
      >>> x, kernel = jnp.ones((1, 1, 5, 5)), jnp.ones((1, 1, 3, 3))
      >>> is_slow_in_loops(blur, x, kernel)
      True
      >>> is_slow_in_loops(fast_convolutions(blur), x, kernel)
      False
    """
    if not cpu.is_target():
        return False
    leaves = jax.tree.leaves(fn) if isinstance(fn, jax.tree_util.Partial) else [fn]
    if all(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves):
        # JAX keeps the trace of a pytree.
        return _has_convolution(_call.trace(fn, *args).jaxpr)
    return _has_convolution(jax.make_jaxpr(fn)(*args))


@jax.jit
def _call(fn, *args):
    return fn(*args)


def _has_convolution(jaxpr: Any) -> bool:
    primitives = (eqn.primitive for eqn in equations(jaxpr))
    return lax.conv_general_dilated_p in primitives


def _plain(fn, *args, **kwargs):
    # Part of the program, so that it is seen through any wrapper.
    with jax.named_scope(_PLAIN):
        return fn(*args, **kwargs)


def _fast(fn, *args, **kwargs):
    if not _is_wanted():
        return fn(*args, **kwargs)
    leaves, structure = jax.tree.flatten((args, kwargs))
    places = [i for i, v in enumerate(leaves) if isinstance(v, jax.Array | np.ndarray)]

    def of_arrays(*arrays):
        filled = list(leaves)
        for i, array in zip(places, arrays, strict=True):
            filled[i] = array
        args, kwargs = jax.tree.unflatten(structure, filled)
        return fn(*args, **kwargs)

    arrays = [leaves[i] for i in places]
    try:
        closed, out = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
    except Exception:  # a true error of `fn` shows again here
        return fn(*args, **kwargs)
    # Also without an exchange: `fn` is not traced a second time.
    results = jax.extend.core.jaxpr_as_fun(_exchange(closed))(*arrays)
    return jax.tree.unflatten(jax.tree.structure(out), results)


def _is_wanted() -> bool:
    is_off = os.environ.get("JAXROBUST_PLAIN_CONVOLUTIONS", "0") not in ("", "0")
    return cpu.is_target() and not is_off


def _exchange(jaxpr: Any) -> Any:
    """Return the jaxpr with fast primitives, or itself if there is nothing to exchange."""

    @functools.cache  # a jitted function that is called twice stays one function
    def visit(jaxpr):
        # Since JAX 0.11 a closed jaxpr is a jaxpr that holds its constants.
        if opened(jaxpr) is not jaxpr:
            inner = visit(jaxpr.jaxpr)
            return jaxpr if inner is jaxpr.jaxpr else jaxpr.replace(jaxpr=inner)
        eqns = [new for eqn in jaxpr.eqns for new in exchanged(eqn)]
        return jaxpr.replace(eqns=eqns) if is_changed(eqns, jaxpr.eqns) else jaxpr

    def exchanged(eqn):
        if _PLAIN in str(eqn.source_info.name_stack):
            return [eqn]
        return bias_primitive.spread(equation(eqn))

    def equation(eqn):
        types = [v.aval for v in (*eqn.invars, *eqn.outvars)]
        if eqn.primitive is lax.conv_general_dilated_p:
            if conv_primitive.is_eligible(types, eqn.params):
                return eqn.replace(primitive=conv_primitive.conv_p)
        elif eqn.primitive is lax.reduce_window_max_p:
            if pool_primitive.is_eligible(types, eqn.params):
                return eqn.replace(primitive=pool_primitive.max_pool_p)
        elif eqn.primitive.name in _TRANSPARENT:
            params = {name: parameter(value) for name, value in eqn.params.items()}
            if is_changed(params.values(), eqn.params.values()):
                params = {name: function(name, value) for name, value in params.items()}
                return eqn.replace(params=params)
        return eqn

    def parameter(value):
        if is_jaxpr(value):
            return visit(value)
        if isinstance(value, tuple):
            new = tuple(map(parameter, value))
            return new if is_changed(new, value) else value
        return value

    def function(name, value):
        """Return a function among the parameters in a form that fits what is exchanged."""
        if name == "policy" and value is not None:
            return functools.partial(_policy, value)
        if name in _MAKERS:
            return _Maker(value, visit)
        return _backward(value) if name == "bwd" else value

    def is_changed(new, old):
        # Of different lengths where a bias has been spread.
        return len(new) != len(old) or any(
            a is not b for a, b in zip(new, old, strict=True)
        )

    return visit(jaxpr)


class _Maker:
    """A rule that makes a program, and exchanges in it; what JAX asks of such a rule."""

    def __init__(self, rule: Any, visit: Callable):
        self._rule, self._visit = rule, visit
        self.debug_info = rule.debug_info

    def call_wrapped(self, *args):
        jaxpr, *rest = self._rule.call_wrapped(*args)
        return self._visit(jaxpr), *rest


@linear_util.transformation2
def _backward(bwd, *args):
    """Call the backward rule of the user, which is not a program yet."""
    return fast_convolutions(bwd)(*args)


def _policy(policy, primitive, *args, **params):
    """Let a rematerialisation policy see the convolutions that it knows."""
    if primitive is conv_primitive.conv_p:
        primitive = lax.conv_general_dilated_p
    return policy(primitive, *args, **params)
