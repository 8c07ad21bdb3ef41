"""Plain functions as models: the arrays that they capture become arguments.

`jax.jit` would freeze what a function captures at its first call, and an attack on a model
that has been trained or switched to evaluation since would silently attack the old one; and
it would keep the arrays for as long as the process runs. So the function is traced anew for
every attack. Its program, without the arrays, is the key of the compilation.
"""

import functools
import hashlib
import os
import re
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, Var
from jax.sharding import NamedSharding, PartitionSpec

from jaxrobust._core import batching
from jaxrobust._core.jaxpr import constants, equations, inner_jaxprs


def hoist(function: Callable, x: Any, *rest: Any) -> tuple[Callable, tuple]:
    """Return a compilation key that computes `function`, and the arrays it is called with.

    Args:
      function: A plain function `[B, ...] -> [B, C]`; the caller keeps it alive.
      x: Inputs, of which only shape and type count.
      *rest: Further arguments of the function, such as keys.

    Returns:
      `key, arrays`, of which `key(arrays, x, *rest)` equals `function(x, *rest)`.
    """
    arguments = (x, *rest)
    program, structure = _trace(function, *arguments)
    if _has_own_rules(program.jaxpr):
        return _Whole(function, program, arguments), tuple(program.consts)
    key = _Program(function, program, structure, arguments)
    if any(isinstance(array, jax.core.Tracer) for array in program.consts):
        return key, tuple(program.consts)
    with jax.ensure_compile_time_eval():  # NumPy's are copied to the device once
        return key, tuple(_beside(array, x) for array in program.consts)


class _Program:
    """The program of a function at one shape of its input, without its arrays.

    The function itself is known weakly, for inputs of other shapes: JAX keeps the keys of
    its compilations, and whatever they hold.
    """

    def __init__(self, function: Callable, program: ClosedJaxpr, structure, arguments):
        self._function = _weakly(function)
        self._type = _types(arguments)
        self._arrays = tuple(map(_Mark, program.consts))
        self._run = _runner(program, structure)
        self._version = (_text(program, structure), self._type, *_inside(program.jaxpr))
        self._is_alone = False

    def __call__(self, arrays: tuple, *arguments: jax.Array) -> Any:
        if _types(arguments) == self._type:
            return self._run(arrays, *arguments)
        program, structure = _trace(self._function(), *arguments)
        places = self._places(program.consts)
        # A captured array that was not there before stays in the compiled program, and
        # so does what a derivative rule captures: then no later call may run it.
        is_known = None not in places and not _has_own_rules(program.jaxpr)
        self._is_alone |= not is_known
        consts = [
            const if place is None else arrays[place]
            for const, place in zip(program.consts, places, strict=True)
        ]
        return _runner(program, structure)(consts, *arguments)

    def _places(self, consts: Any) -> list[int | None]:
        """Return where each array of another trace stands among those of the first."""
        free = dict(enumerate(self._arrays))
        places = []
        for const in consts:
            same = [i for i, mark in free.items() if mark.is_of(const)]
            places.append(same[0] if same else None)
            if same:
                del free[same[0]]
        return places

    def __hash__(self) -> int:
        return hash(self._version[0])

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, _Program):
            return self is other
        is_reusable = not (self._is_alone or other._is_alone)
        is_same = _is_same(self._function(), other._function())
        return is_reusable and is_same and self._version == other._version


class _Whole:
    """A function as a compilation key, with everything that it captures.

    For models with derivative rules of their own: nobody can say what these rules capture.
    The gradient's program holds it; its arrays are compared by identity, NumPy's, which
    can be overwritten, by value.
    """

    def __init__(self, function: Callable, program: ClosedJaxpr, arguments: tuple):
        self._function = function
        programs = [program]
        try:
            gradient = functools.partial(_gradient, function)
            programs.append(_trace(gradient, *arguments)[0])
        except Exception:
            pass  # no gradient: an attack that needs one says so
        # Kept alive: a free id could be given out again.
        self._arrays = [const for program in programs for const in program.consts]
        inside = [found for program in programs for found in _inside(program.jaxpr)]
        texts = [_text(program, None) for program in programs]
        self._version = (*texts, *inside, *map(_identity, self._arrays))

    def __call__(self, arrays: tuple, *arguments: jax.Array) -> Any:
        del arrays  # the function has them
        return self._function(*arguments)

    def __hash__(self) -> int:
        return hash(self._version)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Whole)
            and _is_same(self._function, other._function)
            and self._version == other._version
        )


def _gradient(function: Callable, x: jax.Array, *rest: jax.Array) -> Any:
    out, pull = jax.vjp(lambda x: function(x, *rest), x)
    return pull(jax.tree.map(jnp.ones_like, out))


class _Mark:
    """Recognises a captured array in another trace, and does not keep it alive."""

    def __init__(self, array: Any):
        is_jax = isinstance(array, jax.Array)
        self._reference = weakref.ref(array) if is_jax else None
        self._value = None if is_jax else _identity(array)

    def is_of(self, array: Any) -> bool:
        if self._reference is not None:
            return self._reference() is array
        return not isinstance(array, jax.Array) and self._value == _identity(array)


def _types(arguments: tuple) -> tuple:
    return tuple((array.shape, array.dtype) for array in arguments)


def _trace(function: Callable, *arguments: Any) -> tuple[ClosedJaxpr, Any]:
    """Return the program of a function and the structure of its result."""
    shapes = [jax.ShapeDtypeStruct(*of) for of in _types(arguments)]
    trace = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)
    program, shape = trace(*shapes)
    return _written_out(program), jax.tree.structure(shape)


def _runner(program: ClosedJaxpr, structure: Any) -> Callable:
    """Return the program as a function of its arrays and its input."""
    jaxpr = program.jaxpr
    jaxpr = jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars])
    run = jax.extend.core.jaxpr_as_fun(ClosedJaxpr(jaxpr, []))
    return lambda arrays, *args: jax.tree.unflatten(structure, run(*arrays, *args))


def _written_out(program: ClosedJaxpr) -> ClosedJaxpr:
    """Return the program with the jitted functions that hold arrays written out.

    The arrays of these are constants of theirs, where they cannot be exchanged.
    """
    if not any(map(_is_holder, program.jaxpr.eqns)):
        return program
    variables, consts, eqns = [], [], []

    def visit(closed: Any, inputs: list, stack: Any = None) -> list:
        jaxpr = closed.jaxpr
        own = [Var(v.aval) for v in jaxpr.constvars]
        variables.extend(own)
        consts.extend(closed.consts)
        # A jitted function may be called twice: each time with variables of its own.
        names = dict(
            zip((*jaxpr.constvars, *jaxpr.invars), (*own, *inputs), strict=True)
        )

        def read(atom: Any) -> Any:
            return atom if isinstance(atom, Literal) else names[atom]

        for eqn in jaxpr.eqns:
            arguments, info = [*map(read, eqn.invars)], eqn.source_info
            if stack is not None:  # the name of a scope goes for all inside
                info = info.replace(name_stack=stack + info.name_stack)
            if _is_holder(eqn):
                results = visit(eqn.params["jaxpr"], arguments, info.name_stack)
            else:
                results = [Var(v.aval) for v in eqn.outvars]
                eqns.append(
                    eqn.replace(invars=arguments, outvars=results, source_info=info)
                )
            names.update(zip(eqn.outvars, results, strict=True))
        return [*map(read, jaxpr.outvars)]

    jaxpr = program.jaxpr
    outputs = visit(program, jaxpr.invars)
    jaxpr = jaxpr.replace(constvars=variables, eqns=eqns, outvars=outputs)
    return ClosedJaxpr(jaxpr, consts)


def _is_holder(eqn: Any) -> bool:
    """Whether an equation calls a jitted function that holds arrays."""
    if eqn.primitive.name not in ("jit", "pjit"):
        return False
    inner = eqn.params["jaxpr"]
    return bool(inner.consts) or any(map(_is_holder, inner.jaxpr.eqns))


def _has_own_rules(jaxpr: Any) -> bool:
    """Whether there are derivative rules of anybody but JAX."""
    for eqn in equations(jaxpr):
        if eqn.primitive.name.startswith("custom_"):
            files = [
                getattr(i.debug_info, "func_filename", None) for i in inner_jaxprs(eqn)
            ]
            if not files or not all((f or "").startswith(_JAX) for f in files):
                return True
    return False


def _inside(jaxpr: Any) -> Iterator[Any]:
    """Yield the identity of what a program holds that is not among its arrays."""
    for eqn in equations(jaxpr):
        for program in inner_jaxprs(eqn):
            yield from map(_identity, constants(program))
        if "callback" in eqn.params:
            function = eqn.params["callback"]
            yield _captured(getattr(function, "callback_func", function))


def _captured(function: Any) -> Any:
    """Return what tells a function of the host from the same one with other captures."""
    if not isinstance(function, types.FunctionType):
        return id(function)
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return (function.__code__, *map(id, cells), *map(id, function.__defaults__ or ()))


def _identity(array: Any) -> Any:
    if isinstance(array, jax.Array):
        return id(array)
    array = np.asarray(array)
    return str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).digest()


def _beside(array: Any, x: Any) -> jax.Array:
    """Return a captured array where it can be used together with `x`."""
    array = array if isinstance(array, jax.Array) else jnp.asarray(np.asarray(array))
    # Arguments have to be on the same devices, constants had not.
    if not getattr(x, "committed", False) or array.devices() == x.devices():
        return array
    sharding = x.sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec())
    if batching.is_keys(array):
        data = jax.device_put(np.asarray(jax.random.key_data(array)), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    return jax.device_put(np.asarray(array), sharding)


def _text(program: ClosedJaxpr, structure: Any) -> str:
    # Functions inside a jaxpr are printed with their address, which says nothing.
    return _ADDRESS.sub("", f"{program.jaxpr} {structure}")


_ADDRESS = re.compile(r"0x[0-9a-f]+")
_JAX = os.path.dirname(jax.__file__)


def _weakly(function: Callable) -> Callable:
    """Return a reference to a function that does not keep it alive, if there can be."""
    try:
        if isinstance(function, types.MethodType):
            return weakref.WeakMethod(function)
        return weakref.ref(function)
    except TypeError:
        return lambda: function


def _is_same(a: Any, b: Any) -> bool:
    """Whether two functions, if they are still there, are one."""
    if isinstance(a, types.MethodType):
        return a == b  # a method is a new object each time it is looked up
    return a is not None and a is b
