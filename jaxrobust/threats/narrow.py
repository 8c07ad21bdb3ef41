"""Inputs of half precision: attacks iterate in float32 and return what the type holds.

A step that is smaller than the distance of two numbers would be lost, and a point of a
ball would leave it when it is rounded. So the model rounds what it is given, and the threat
projects on points whose rounding is feasible: what was evaluated is what is returned.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust._core import pytree, rounding
from jaxrobust.threats._ball import Ball
from jaxrobust.types import Array

is_narrow = rounding.is_narrow


@pytree.register
@dataclasses.dataclass(frozen=True)
class Rounding:
    """A model of half precision for points in float32; the gradient passes through."""

    logits_fn: Callable
    dtype: Any = pytree.static()

    def __call__(self, x: Array, *keys: Array) -> Array:
        rounded = x + jax.lax.stop_gradient(rounding.nearest(x, self.dtype) - x)
        return self.logits_fn(rounded.astype(self.dtype), *keys)


def threat_in(threat: Any, dtype: Any) -> Any:
    """Return the threat, in float32, whose points are feasible once they are rounded."""
    if not isinstance(threat, Ball):
        return _Other(threat, dtype)
    bounds = _bounds(threat.bounds, dtype)
    return _narrowed(type(threat))(threat.eps, bounds, threat.mask, dtype=dtype)


def _bounds(bounds: Any, dtype: Any) -> Any:
    if bounds is None:
        return None
    lower, upper = bounds
    inwards = rounding.bounds_inwards(lower, upper, dtype)
    return tuple(bound.astype(jnp.float32) for bound in inwards)


@functools.cache
def _narrowed(kind: Any) -> Any:
    """Return a subclass, so that attacks know the norm by the class as always."""

    @pytree.register
    @dataclasses.dataclass(frozen=True, repr=False)
    class Narrowed(kind):
        dtype: Any = pytree.static(None)

        def project(self, x_adv: Array, x: Array) -> Array:
            """Return a feasible point near `x_adv` that stays so when it is rounded."""
            if self.order != jnp.inf:
                return _drawn_in(self, kind.project(self, x_adv, x), x)
            # The box of all feasible numbers of the type: rounding does not leave it.
            centre, far = x.astype(self.dtype), jnp.full(x.shape, jnp.inf, self.dtype)
            low, high = (kind.project(self, end, centre) for end in (-far, far))
            return jnp.clip(x_adv, low.astype(x.dtype), high.astype(x.dtype))

        def distance(self, x_adv: Array, x: Array) -> Array:
            """Return the distance of the rounded point, `[B]`."""
            return kind.distance(self, rounding.nearest(x_adv, self.dtype), x)

    return Narrowed


@pytree.register
@dataclasses.dataclass(frozen=True)
class _Other:
    """The same for a threat of any other class."""

    threat: Any
    dtype: Any = pytree.static()

    eps = property(lambda self: self.threat.eps)
    mask = property(lambda self: self.threat.mask)
    order = property(lambda self: self.threat.order)
    steepest = property(lambda self: self.threat.steepest)

    @property
    def bounds(self) -> Any:
        """The bounds in the type of the points."""
        return _bounds(self.threat.bounds, self.dtype)

    def project(self, x_adv: Array, x: Array) -> Array:
        """Return a feasible point near `x_adv` that stays so when it is rounded."""
        projected = self.threat.project(x_adv, x)
        if self.bounds is not None:
            projected = jnp.clip(projected, *self.bounds)
        return _drawn_in(self, projected, x)

    def distance(self, x_adv: Array, x: Array) -> Array:
        """Return the distance of the rounded point, `[B]`."""
        return self.threat.distance(rounding.nearest(x_adv, self.dtype), x)

    def sample(self, keys: Array, x: Array) -> Array:
        """Return a random feasible point for each example."""
        return self.project(self.threat.sample(keys, x), x)

    def with_eps(self, eps: Any) -> "_Other":
        """Return the same threat with another radius."""
        return _Other(self.threat.with_eps(eps), self.dtype)


def _drawn_in(threat: Any, x_adv: Array, x: Array) -> Array:
    def is_inside(point: Array) -> Array:
        return threat.distance(point, x) <= jnp.asarray(threat.eps)

    return rounding.drawn_in(x_adv, x, threat.dtype, is_inside)
