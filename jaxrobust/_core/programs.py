"""What the program of a model says: where between input and logits the gradient ends.

JAX shows the program (the jaxpr), so it can be read instead of guessed. `find_losses`
follows two properties of every intermediate value: whether the input's gradient reaches it,
and which operations have cut it off on the way of a value that is used.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust._core.jaxpr import bind, equations, inner_jaxprs, interpret, opened

# Floating-point results whose derivative is zero, by definition or almost everywhere.
_FLAT = {"round", "floor", "ceil", "sign", "stop_gradient"}
_FLAT |= {"bitcast_convert_type", "pure_callback", "io_callback"}
_COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge", "lt_to", "le_to"}
# The index operands of these choose among values; the choice is constant locally.
_INDEXED = {"gather": (1,), "scatter": (1,), "scatter-add": (1,)}
_DRAWS = {"random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform"}
_KEYS = {"random_seed", "random_wrap", "random_unwrap", "random_fold_in"}
_KEYS |= {"random_split"} | _DRAWS
_MAX = {"max", "broadcast_in_dim", "reshape", "squeeze", "transpose", "select_n"}
_MAX |= {"convert_element_type", "copy"}


class Reach(NamedTuple):
    """How the input reaches a value."""

    is_live: bool = False  # the gradient reaches it
    lost: frozenset[str] = frozenset()  # operations that cut a path to it
    is_max: bool = False  # the maximum that log-sum-exp subtracts and adds again
    custom: frozenset[str] = frozenset()  # functions with a derivative of their own


def find_losses(logits_fn, x: jax.Array) -> Reach:
    """Return how the input reaches the logits.

    Args:
      logits_fn: The model.
      x: Inputs, of which only shape and type count.

    Returns:
      A `Reach`: live if any gradient arrives; `lost` names the operations that have cut
      other ways.
    """
    return _join(_walk(_trace(logits_fn, x), [Reach(is_live=True)]))


def is_random(logits_fn, x: jax.Array) -> bool:
    """Return whether random numbers reach the logits, drawn anew or always the same.

    Args:
      logits_fn: The model.
      x: Inputs, of which only shape and type count.
    """

    def rule(eqn: Any, inputs: list[bool]) -> list[bool]:
        names = (e.primitive.name for e in (eqn, *equations(*inner_jaxprs(eqn))))
        return [any(inputs) or not _DRAWS.isdisjoint(names)] * len(eqn.outvars)

    return any(interpret(_trace(logits_fn, x), [False], rule, lambda _: False))


def _trace(logits_fn, x: jax.Array) -> Any:
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.make_jaxpr(lambda x: logits_fn(x))(shape)


def _join(reaches) -> Reach:
    reaches = [r for r in reaches if r != Reach()]
    return Reach(
        any(r.is_live for r in reaches),
        frozenset().union(*(r.lost for r in reaches)),
        bool(reaches) and all(r.is_max for r in reaches),
        frozenset().union(*(r.custom for r in reaches)),
    )


def _walk(jaxpr: Any, inputs: list[Reach]) -> list[Reach]:
    return interpret(jaxpr, inputs, _apply, lambda _: Reach())


def _apply(eqn: Any, inputs: list[Reach]) -> list[Reach]:
    """Return how the input reaches the results of one operation."""
    name, params = eqn.primitive.name, eqn.params
    count = len(eqn.outvars)
    if name in _KEYS or all(r == Reach() for r in inputs):
        return [Reach()] * count  # randomness is measured, not read
    if name.startswith("custom_"):
        joined = _join(inputs)
        custom = joined.custom | {_name(params, name)}
        return [joined._replace(custom=custom, is_max=False)] * count
    if name == "scan":
        return _repeat(params["jaxpr"], inputs, _carried(params))[:count]
    if name == "while":
        skipped = params["cond_nconsts"]
        carried = slice(params["body_nconsts"], None)
        return _repeat(params["body_jaxpr"], inputs[skipped:], carried)
    if name == "cond":
        branches = [_walk(b, inputs[1:]) for b in params["branches"]]
        return [_join(results) for results in zip(*branches, strict=True)]
    called = params.get("jaxpr", params.get("call_jaxpr"))
    if called is not None:
        return _walk(called, inputs)
    return [_result(name, inputs, v.aval.dtype) for v in eqn.outvars]


def _carried(params: Any) -> slice:
    """Return which inputs of a scan are its carry."""
    if "num_carry" in params:
        num_consts, num_carry = params["num_consts"], params["num_carry"]
    else:  # since JAX 0.11: the trees of constants, carry and slices
        consts, carry, _ = params["ft_in"].elts
        num_consts, num_carry = len(list(consts.vals)), len(list(carry.vals))
    return slice(num_consts, num_consts + num_carry)


def _name(params: Any, default: str) -> str:
    """Return the name of the function that has a derivative of its own."""
    info = getattr(opened(params.get("call_jaxpr")), "debug_info", None)
    return str(getattr(info, "func_name", default))


def _repeat(body: Any, inputs: list[Reach], carried: slice) -> list[Reach]:
    """Walk a loop's body until what is carried no longer changes."""
    while True:
        outputs = _walk(body, inputs)
        before = inputs[carried]
        after = [_join(p) for p in zip(before, outputs[: len(before)], strict=True)]
        if after == before:
            return outputs  # of at least one round
        inputs = [*inputs]
        inputs[carried] = after


def _result(name: str, inputs: list[Reach], dtype: Any) -> Reach:
    """Return how the input reaches one result of a primitive operation."""
    if name == "select_n":
        chosen = _join(inputs[1:])
        # A choice between constants is a step function; between live values it is not.
        return chosen if chosen.is_live else _join(inputs)
    if name == "dynamic_slice":
        inputs = inputs[:1] if inputs[0].is_live else inputs
    elif name in _INDEXED:
        chosen = [r for k, r in enumerate(inputs) if k not in _INDEXED[name]]
        inputs = chosen if _join(chosen).is_live else inputs
    joined = _join(inputs)
    is_float = jnp.issubdtype(dtype, jnp.inexact)
    if name == "stop_gradient" and joined.is_max:
        return Reach()
    if joined.is_live and (name in _FLAT or not is_float):
        label = "comparison" if name in _COMPARISONS else name
        label = "conversion to integer" if name == "convert_element_type" else label
        lost = joined.lost | {label}
        return Reach(lost=lost, is_max=False, custom=joined.custom)
    is_max = name == "reduce_max" or (joined.is_max and name in _MAX)
    return joined._replace(is_max=is_max)


def straight_through(logits_fn, x: jax.Array) -> jax.Array:
    """Evaluate a model with the gradient let through what is flat: an automatic BPDA.

    Athalye et al. 2018, arXiv:1802.00420, section 4.1, applied to every rounding, sign and
    stop_gradient of the program; values are unchanged.

    Args:
      logits_fn: The model.
      x: Inputs `[B, ...]`.

    Returns:
      Logits `[B, C]`.
    """

    def rule(eqn: Any, inputs: list) -> list:
        name = eqn.primitive.name
        if name in {"jit", "pjit"}:
            return interpret(eqn.params["jaxpr"], inputs, rule)
        results = bind(eqn, inputs)
        if name in {"round", "floor", "ceil", "sign", "stop_gradient"}:
            (x,) = inputs
            results = [results[0] + (x - jax.lax.stop_gradient(x))]
        return results

    return interpret(jax.make_jaxpr(lambda x: logits_fn(x))(x), [x], rule)[0]
