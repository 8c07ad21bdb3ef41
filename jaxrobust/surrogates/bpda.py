"""Backward pass differentiable approximation: a gradient for what has none."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust.types import Array


def _identity(x: Array) -> Array:
    return x


def bpda(forward: Callable | None = None, *, backward: Callable = _identity) -> Any:
    """Give `forward` the derivative of `backward`; a function or a decorator.

    Athalye et al. 2018, arXiv:1802.00420, section 4.1. The value is that of `forward`,
    exactly; the derivative is that of `backward` at the same input. With the identity: the
    straight-through estimator, right for any g(x) near x (quantisation, JPEG).
    `forward` is never differentiated and may be a `jax.pure_callback`.

    Args:
      forward: What is computed, `x -> array`. Left out: returns a decorator.
      backward: What is differentiated, a smooth approximation of `forward` with outputs of
        the same shape; its values have to be finite.

    Returns:
      A function of `x`, for `jit`, `vmap`, `scan` and forward or reverse differentiation
      of any order.

    Raises:
      ValueError: When called, if the two outputs differ in shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> @bpda
      ... def quantise(x):
      ...     return jnp.round(4 * x) / 4
      >>> print(quantise(0.3), jax.grad(quantise)(0.3))
      0.25 1.0
      >>> step = bpda(lambda x: jnp.sign(x), backward=jnp.tanh)
      >>> print(step(0.0), jax.grad(step)(0.0))
      0.0 1.0
    """
    if forward is None:
        return functools.partial(bpda, backward=backward)

    @functools.wraps(forward)
    def function(x: Array) -> Array:
        x = jnp.asarray(x)
        value = jax.lax.stop_gradient(forward(jax.lax.stop_gradient(x)))
        smooth = backward(x)
        if jnp.shape(value) != jnp.shape(smooth):
            raise ValueError(
                f"bpda: forward returns shape {jnp.shape(value)} and backward "
                f"{jnp.shape(smooth)}; the same shape is needed: pass a smooth "
                "backward=... with the outputs of forward."
            )
        # smooth - smooth is exactly 0: the value is untouched. No custom rule: these reject
        # closures over the parameters of a training step.
        zero = smooth - jax.lax.stop_gradient(smooth)
        return value + zero.astype(value.dtype)

    return function
