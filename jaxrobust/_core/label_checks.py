"""What is given as `y` is what the loss takes: checked on shapes and types."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust._core import kinds


def check(y: Any, num_examples: int, takes: str) -> Any:
    """Return `y` with integers in int32, or raise the error that says what is needed."""
    parts = y if isinstance(y, tuple) else (y,)
    if takes == kinds.PAIR:
        if not isinstance(y, tuple) or len(y) != 2:
            raise TypeError(
                f"y is {_what(y)}; the loss takes a pair (labels [B], targets [B]): pass "
                "both, or let jr.Targets(attack) choose the targets."
            )
        for name, part in zip(("labels", "targets"), parts, strict=True):
            _check_integers(part, num_examples, name)
    elif isinstance(y, tuple) and takes != kinds.ANYTHING:
        raise TypeError(
            f"y is {_what(y)}; the loss takes {takes}. A pair (labels, targets) is for "
            "loss=jr.losses.dlr_targeted, FAB(targeted=True) and the like."
        )
    elif takes in (kinds.LABELS, kinds.TARGETS):
        _check_integers(y, num_examples, takes)
    else:
        _check_array(y, num_examples, takes)
    return jax.tree.map(_in_int32, y)


def _check_integers(y: Any, num_examples: int, name: str) -> None:
    if y.ndim >= 2 and y.shape[0] == num_examples and y.shape[1:] == (1,):
        raise ValueError(
            f"{name} have shape {y.shape}; shape ({num_examples},) is needed: pass "
            "y[:, 0]."
        )
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(
            f"y is of type {y.dtype}, shape {y.shape}; the loss takes integer labels [B]. "
            "Pass y.astype('int32') for classes, y.argmax(-1) for one-hot labels. For soft "
            "labels write a loss of your own; for real values there is loss="
            "jr.losses.squared_error, for several labels at once binary_cross_entropy."
        )
    if y.shape != (num_examples,):
        raise ValueError(
            f"y has shape {y.shape}; one label for each of the {num_examples} examples "
            f"is needed, shape ({num_examples},). For one-hot labels pass y.argmax(-1), "
            "for a single example x[None] and y[None], for pixels or tokens loss="
            "jr.losses.per_position(...), for several labels binary_cross_entropy."
        )


def _check_array(y: Any, num_examples: int, takes: str) -> None:
    """Check `y` of a loss that takes something else than labels."""
    for leaf in jax.tree.leaves(y):
        if not np.ndim(leaf) or leaf.shape[0] != num_examples:
            raise ValueError(
                f"y has shape {np.shape(leaf)}; the loss takes {takes}, one row for each "
                f"of the {num_examples} examples."
            )
    if takes in (kinds.LOGITS, kinds.MULTI_HOT) and y.ndim != 2:
        advice = {
            kinds.LOGITS: "pass logits_fn(x)",
            kinds.MULTI_HOT: "pass 0 or 1 for each class",
        }
        raise TypeError(
            f"y is {_what(y)}; the loss takes {takes} [B, C]: {advice[takes]}, or choose "
            "a loss on labels, such as jr.losses.cross_entropy."
        )
    if takes == kinds.POSITIONS and not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(
            f"y is {_what(y)}; the loss takes integer labels, one for each position."
        )


def check_range(y: Any, num_classes: int) -> None:
    """Check that integers are classes of the model; what cannot be seen passes."""
    for part in y if isinstance(y, tuple) else (y,):
        if isinstance(part, jax.core.Tracer):
            continue
        values = np.asarray(part)
        if not np.issubdtype(values.dtype, np.integer) or not values.size:
            continue
        if values.min() < 0 or values.max() >= num_classes:
            raise ValueError(
                f"y has labels from {values.min()} to {values.max()}, but the model has "
                f"{num_classes} classes: labels must be in 0..{num_classes - 1}."
            )


def _in_int32(leaf: Any) -> Any:
    is_integer = jnp.issubdtype(leaf.dtype, jnp.integer)
    return leaf.astype(np.int32) if is_integer else leaf


def _what(y: Any) -> str:
    if isinstance(y, tuple):
        return f"a tuple of {len(y)}"
    return f"of type {y.dtype}, shape {y.shape}"
