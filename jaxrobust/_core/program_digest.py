"""A digest of a traced program: what it computes, its constants included.

The text of a setting cannot say what a closure does: `adam(schedule)` has one repr for
every schedule. The program that JAX traces can.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from jaxrobust._core import batching
from jaxrobust._core.jaxpr import constants, is_jaxpr, opened

# Parameters of equations that decide where, under which name or in which buffers a program
# runs, and the rules of derivatives that were not asked for: those that were are in it.
_IRRELEVANT = re.compile(
    r"name|.*sharding.*|.*layout.*|donated_invars|inline|keep_unused|ctx_mesh|"
    r"compiler_options_kvs|jvp_jaxpr_fun|jvp|jvp_jaxpr_thunk|fwd|fwd_jaxpr_thunk|bwd|"
    r"out_trees|policy|prevent_cse|differentiated|debug_info"
)
# They call the host with what the program computed, and give nothing back to it.
_SILENT = ("debug_callback", "debug_print")
_HOST = ("pure_callback", "io_callback")


class HostCallError(ValueError):
    """The program calls a function of the host, of which nothing can be known."""


def program_digest(fn: Callable, *args: Any, host_calls: bool = False) -> str:
    """Return a digest of what `fn(*args)` computes, equal in every process.

    Equal programs have equal digests: names, addresses, shardings and the order of
    definition do not matter. The values of closed-over arrays and keys do, as they are
    constants of the program; those of `args` do not, only their shapes and types. Another
    version of JAX may trace another program.

    Args:
      fn: A pure function that JAX can trace; a jitted one is not traced again.
      *args: Its arguments, or `jax.ShapeDtypeStruct`s.
      host_calls: Whether functions of the host (`jax.pure_callback`) count by their names;
        otherwise they raise. Those of `jax.debug` never count.

    Returns:
      64 hexadecimal digits.

    Raises:
      HostCallError: If the program calls the host and `host_calls` is False.

    Example:
      >>> import jax.numpy as jnp
      >>> def scale_by(factor):
      ...     return lambda x: factor * x
      >>> one, two = (program_digest(scale_by(f), jnp.ones(3)) for f in (1.0, 2.0))
      >>> one == two, one == program_digest(scale_by(1.0), jnp.ones(3))
      (False, True)
    """
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    walk = _Walk(host_calls)
    structure = str(jax.tree.structure(shape))
    return _sha256([walk.program(closed), walk.value(structure)])


class _Walk:
    """Turns jaxprs into texts; a jaxpr that is used many times is read once."""

    def __init__(self, host_calls: bool):
        self._host_calls = host_calls
        self._seen: dict[int, tuple[Any, str]] = {}

    def program(self, jaxpr: Any) -> str:
        """Return the digest of a jaxpr, closed or not."""
        if id(jaxpr) not in self._seen:
            # The jaxpr is kept, so that no other one gets its number.
            self._seen[id(jaxpr)] = jaxpr, _sha256(self._lines(jaxpr))
        return self._seen[id(jaxpr)][1]

    def _lines(self, jaxpr: Any) -> Iterator[str]:
        values, jaxpr = constants(jaxpr), opened(jaxpr)
        numbers: dict[Any, int] = {}

        def define(variable: Any) -> str:
            numbers[variable] = len(numbers)
            return f"{numbers[variable]}:{_type(variable.aval)}"

        def use(atom: Any) -> str:
            if isinstance(atom, Literal):
                return f"{self.value(atom.val)}:{_type(atom.aval)}"
            return str(numbers[atom])

        yield f"consts {[*map(define, jaxpr.constvars)]} {[*map(self.value, values)]}"
        yield f"in {[*map(define, jaxpr.invars)]}"
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in _SILENT:
                continue
            self._check_host(eqn)
            params = {k: v for k, v in eqn.params.items() if not _is_irrelevant(k)}
            inputs = [*map(use, eqn.invars)]
            outputs = [*map(define, eqn.outvars)]
            yield f"{outputs} {eqn.primitive.name} {inputs} {self.value(params)}"
        yield f"out {[*map(use, jaxpr.outvars)]}"

    def value(self, value: Any) -> str:
        """Return the text of a constant or of a parameter."""
        if is_jaxpr(value):
            return self.program(value)
        if batching.is_keys(value):
            data = self.value(jax.random.key_data(value))
            return f"key {jax.random.key_impl(value)} {data}"
        # JAX has several kinds of arrays, and some of literals are not of its public ones.
        if hasattr(value, "__array__") and not isinstance(value, type):
            array = np.asarray(value)
            data = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            return f"{array.dtype}{list(array.shape)} {data}"
        if isinstance(value, Mapping):
            items = sorted((str(k), self.value(v)) for k, v in value.items())
            return f"{{{items}}}"
        if isinstance(value, tuple | list):
            return f"({', '.join(map(self.value, value))})"
        if callable(value) and hasattr(value, "__qualname__"):
            return f"{value.__module__}.{value.__qualname__}"
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))

    def _check_host(self, eqn: Any) -> None:
        if eqn.primitive.name in _HOST and not self._host_calls:
            function = eqn.params.get("callback", eqn.primitive.name)
            function = getattr(function, "callback_func", function)
            raise HostCallError(
                f"the program calls the host ({eqn.primitive.name} of "
                f"{self.value(function)}), and what that computes cannot be known."
            )


def _is_irrelevant(name: str) -> bool:
    return _IRRELEVANT.fullmatch(name) is not None


def _type(aval: Any) -> str:
    """Return the type of a variable without its sharding."""
    if not hasattr(aval, "shape"):
        return re.sub(r" at 0x[0-9a-f]+", "", str(aval))
    weak = "~" * bool(getattr(aval, "weak_type", False))
    return f"{aval.dtype}{weak}{list(aval.shape)}"


def _sha256(lines: Any) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
