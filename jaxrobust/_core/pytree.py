"""Registration of the library's values as pytrees."""

import dataclasses
from typing import Any, TypeVar, cast

import jax

from jaxrobust._core import arguments

T = TypeVar("T")


def static(default: Any = dataclasses.MISSING) -> Any:
    """Return a field that is part of the structure: another value is another program."""
    return dataclasses.field(default=default, metadata={"static": True})


def register(cls: type[T]) -> type[T]:
    """Register a dataclass as a pytree; fields marked static are part of its structure.

    Not `jax.tree_util.register_dataclass`: the structures that it makes compare equal
    for two classes of equally many fields (JAX 0.10.2), and only their hashes differ.
    Where these collide in part, the cache of `jax.jit` runs the program that was compiled
    for `L2` when `L1` is asked for, in a few of a hundred processes.

    Args:
      cls: A dataclass; `metadata={"static": True}` marks what is not traced.

    Returns:
      The class itself, for use as a decorator.

    Example:
      >>> import jaxrobust as jr
      >>> jax.tree.structure(jr.L1(0.5)) == jax.tree.structure(jr.L2(0.5))
      False
    """
    names: dict[bool, list[str]] = {True: [], False: []}
    for field in dataclasses.fields(cast(Any, cls)):
        names[field.metadata.get("static", False)].append(field.name)

    def flatten(value: T) -> tuple[list, tuple]:
        children, static = (
            [getattr(value, n) for n in names[k]] for k in (False, True)
        )
        return children, tuple(static)

    def flatten_with_keys(value: T) -> tuple[list, tuple]:
        children, static = flatten(value)
        keys = map(jax.tree_util.GetAttrKey, names[False])
        return list(zip(keys, children, strict=True)), static

    def unflatten(static: tuple, children: Any) -> T:
        # Not through __init__: JAX puts placeholders in, which are not valid settings.
        value = object.__new__(cls)
        fields = zip(names[False] + names[True], (*children, *static), strict=True)
        for name, child in fields:
            object.__setattr__(value, name, child)
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return arguments.explained(cls, list(dataclasses.fields(cast(Any, cls))))
