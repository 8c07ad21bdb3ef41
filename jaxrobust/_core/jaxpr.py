"""Programs as JAX traces them (jaxprs), and how they are walked, once for all readers.

A jaxpr is open, or closed: with the values of its constants. Since JAX 0.11 one class is
both; what is here takes either.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

T = TypeVar("T")


def is_jaxpr(value: Any) -> bool:
    """Return whether a value is a jaxpr, open or closed."""
    return isinstance(value, Jaxpr | ClosedJaxpr)


def opened(jaxpr: Any) -> Any:
    """Return a jaxpr whose variables and equations can be read."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def constants(jaxpr: Any) -> Sequence[Any]:
    """Return the values of the constants; an open jaxpr knows none."""
    return getattr(jaxpr, "consts", ())


def inner_jaxprs(eqn: JaxprEqn) -> list[Any]:
    """Return the jaxprs in the parameters of an equation, at any depth of tuples."""
    leaves = jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr)
    return [leaf for leaf in leaves if is_jaxpr(leaf)]


def equations(*jaxprs: Any) -> Iterator[JaxprEqn]:
    """Yield all equations, each before those inside of it."""
    for jaxpr in jaxprs:
        for eqn in opened(jaxpr).eqns:
            yield eqn
            yield from equations(*inner_jaxprs(eqn))


def interpret(
    jaxpr: Any,
    inputs: Sequence[T],
    rule: Callable[[JaxprEqn, list[T]], Sequence[T]],
    constant: Callable[[Any], Any] = lambda value: value,
) -> list[T]:
    """Return what a jaxpr makes of values of any kind: arrays, bounds, properties.

    Args:
      jaxpr: A closed jaxpr, or an open one without constants.
      inputs: The value of each input.
      rule: `rule(eqn, inputs)` returns the value of each result of an equation, and decides
        what becomes of the jaxprs inside: calls, loops, branches.
      constant: Returns the value of an array that is a constant or a literal.

    Returns:
      The value of each output.

    Example:
      >>> def bounds(eqn, inputs):
      ...     if eqn.primitive.name == "neg":
      ...         return [(-inputs[0][1], -inputs[0][0])]
      ...     return [tuple(map(sum, zip(*inputs)))]  # add
      >>> jaxpr = jax.make_jaxpr(lambda x: 3.0 + -x)(0.0)
      >>> interpret(jaxpr, [(0.0, 1.0)], bounds, lambda c: (float(c), float(c)))
      [(2.0, 3.0)]
    """
    variables = (*opened(jaxpr).constvars, *opened(jaxpr).invars)
    values = (*map(constant, constants(jaxpr)), *inputs)
    known = dict(zip(variables, values, strict=True))

    def read(atom: Any) -> T:
        return constant(atom.val) if isinstance(atom, Literal) else known[atom]

    for eqn in opened(jaxpr).eqns:
        results = rule(eqn, [read(atom) for atom in eqn.invars])
        known.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in opened(jaxpr).outvars]


def bind(eqn: JaxprEqn, arguments: Sequence[Any]) -> list[Any]:
    """Return the results of an equation: the rule that evaluates a jaxpr on arrays."""
    params = eqn.primitive.get_bind_params(eqn.params)
    # Earlier versions of JAX return a pair of functions and parameters.
    functions, params = params if isinstance(params, tuple) else ((), params)
    results = eqn.primitive.bind(*functions, *arguments, **params)
    return list(results) if eqn.primitive.multiple_results else [results]
