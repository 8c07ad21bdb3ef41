"""A Flax NNX module as named arrays, and back."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

_MOST_NAMED = 6


def to_arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    """Return the parameters and statistics of a module by name.

    Args:
        model: any NNX module.

    Returns:
        Arrays by names such as "blocks.0.norm1.scale", in the order of the names.

    Example:
        >>> sorted(to_arrays(nnx.Linear(4, 2, rngs=nnx.Rngs(0))))
        ['bias', 'kernel']
    """
    return {name: np.asarray(leaf) for name, leaf in named(model).items()}


def from_arrays(
    model: nnx.Module, arrays: Mapping[str, Any], *, source: str = "arrays"
) -> nnx.Module:
    """Return a module of the same architecture with other parameters and statistics.

    Args:
        model: an NNX module, or an abstract one (`nnx.eval_shape`); it is not changed.
        arrays: what `to_arrays` returns.
        source: where the arrays come from, for the message of an error.

    Returns:
        The new module, in the mode of `model`.

    Raises:
        ValueError: if names or shapes do not fit; the message names those that do not.

    Example:
        >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
        >>> other = from_arrays(model, {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)})
        >>> print(other(jnp.ones(4)))
        [4. 4.]
    """
    leaves = named(model)
    check(shapes(leaves), shapes(arrays), source)
    graph, state = nnx.split(model)
    new = [jnp.asarray(arrays[name], leaf.dtype) for name, leaf in leaves.items()]
    structure = jax.tree.structure(nnx.as_pure(state))
    return nnx.merge(graph, jax.tree.unflatten(structure, new))


def named(model: nnx.Module) -> dict[str, Any]:
    """Return the leaves of a module, which may be abstract, by name.

    Args:
        model: any NNX module.

    Example:
        >>> named(nnx.eval_shape(lambda: nnx.Linear(4, 2, rngs=nnx.Rngs(0))))["bias"].shape
        (2,)
    """
    leaves = jax.tree.leaves_with_path(nnx.as_pure(nnx.state(model)))
    names = (jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in leaves)
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))


def shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of named arrays.

    Args:
        arrays: anything with shapes, by name.

    Example:
        >>> shapes({"bias": np.zeros(3)})
        {'bias': (3,)}
    """
    return {name: tuple(np.shape(array)) for name, array in arrays.items()}


def check(
    needed: Mapping[str, tuple[int, ...]],
    given: Mapping[str, tuple[int, ...]],
    source: str,
) -> None:
    """Raise unless two sets of named arrays have the same names and shapes.

    Args:
        needed: the shapes that the network has.
        given: the shapes that there are.
        source: where the latter come from, for the message.

    Raises:
        ValueError: if they differ; the message names what is missing and surplus.

    Example:
        >>> check({"bias": (3,)}, {"bias": (2,)}, "x.npz")
        Traceback (most recent call last):
        ValueError: x.npz does not fit the network: other shapes: bias is (2,), needed (3,)
    """
    missing = [f"{n} {needed[n]}" for n in needed if n not in given]
    surplus = [f"{n} {given[n]}" for n in given if n not in needed]
    other = [
        f"{n} is {given[n]}, needed {needed[n]}"
        for n in needed
        if n in given and given[n] != needed[n]
    ]
    kinds = {"missing": missing, "surplus": surplus, "other shapes": other}
    texts = [f"{kind}: {_listed(found)}" for kind, found in kinds.items() if found]
    if texts:
        raise ValueError(f"{source} does not fit the network: {'; '.join(texts)}")


def _listed(texts: list[str]) -> str:
    more = len(texts) - _MOST_NAMED
    listed = ", ".join(texts[:_MOST_NAMED])
    return f"{listed} and {more} more" if more > 0 else listed
