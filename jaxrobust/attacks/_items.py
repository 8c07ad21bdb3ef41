"""The items of an attack: its runs over restarts and targets, one by one.

`Restarts` and `Targets` run an attack several times for each example. Whoever drives the
steps itself takes these runs as items `0 <= item < num_items(attack, num_classes)`, the
outermost wrapper counting slowest, and may give each example of a batch another
item. Stepping `innermost(attack)` from `init_item` to its end gives what the wrapper's own
`run` computes for that restart and target.
"""

from typing import Any

import jax

from jaxrobust import losses
from jaxrobust.types import Array, Threat


def num_items(attack: Any, num_classes: int) -> int:
    """Return how many runs the wrappers around an attack ask for; 1 without any.

    Args:
      attack: An attack, or wrappers around one.
      num_classes: Number of classes of the model, which limits the targets.

    Example:
      >>> import jaxrobust as jr
      >>> attack = jr.Targets(jr.Restarts(jr.APGD(loss=jr.losses.dlr_targeted), 2))
      >>> num_items(attack, 10), num_items(attack, 3), num_items(jr.PGD(), 10)
      (18, 4, 1)
    """
    if not _is_wrapper(attack):
        return 1
    return attack.num_items(num_classes)


def init_item(
    attack: Any,
    x: Array,
    y: Any,
    logits: Array,
    item: Array,
    *,
    threat: Threat,
    keys: Array | None,
) -> Any:
    """Return the state of `innermost(attack)` at the start of each example's item.

    Args:
      attack: An attack, or wrappers around one.
      x: Clean inputs `[B, ...]`.
      y: Labels `[B]`.
      logits: Clean logits `[B, C]`, from which targets are chosen.
      item: `[B]` int32, which run of each example.
      threat: The threat model.
      keys: `[B]` keys of the whole attack; those of the items are derived from them.

    Returns:
      The state; evaluates nothing.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> attack = jr.Targets(jr.APGD(loss=jr.losses.dlr_targeted))
      >>> x, y, logits = jnp.full((2, 3), 0.5), jnp.zeros(2, int), jnp.eye(3)[:2]
      >>> state = init_item(attack, x, y, logits, jnp.array([1, 0]), threat=jr.L2(0.1),
      ...                   keys=jax.random.split(jax.random.key(0), 2))
      >>> labels, targets = state.y
      >>> print(targets)
      [2 1]
    """
    if not _is_wrapper(attack):
        return attack.init(x, y, threat=threat, keys=keys)
    return attack.init_item(x, y, logits, item, threat=threat, keys=keys)


def split(attack: Any, item: Array, num_classes: int) -> tuple[Array, Array]:
    """Split a wrapper's items into its own index and the item of what it wraps."""
    inner = num_items(attack.attack, num_classes)
    return jax.numpy.divmod(item, inner)


def innermost(attack: Any) -> Any:
    """Return the attack whose `step` moves the items.

    Example:
      >>> import jaxrobust as jr
      >>> innermost(jr.Restarts(jr.PGD(num_steps=5), 10))
      PGD(num_steps=5)
    """
    while _is_wrapper(attack):
        attack = attack.attack
    return attack


def loss_of(attack: Any) -> Any:
    """Return the loss that an attack maximises, looking into wrappers; None without one.

    Example:
      >>> import jaxrobust as jr
      >>> loss_of(jr.Restarts(jr.PGD(), 10)) is jr.losses.cross_entropy
      True
    """
    own = getattr(attack, "loss", None)
    if own is not None or not hasattr(attack, "attack"):
        return own
    return loss_of(attack.attack)


def goal(attack: Any) -> Any:
    """Return the loss whose goal an attack has: its own, or that of what it wraps.

    Example:
      >>> import jaxrobust as jr
      >>> goal(jr.Restarts(jr.PGD(), 10)) is jr.losses.cross_entropy
      True
    """
    return getattr(attack, "goal", None) or loss_of(attack) or losses.margin


def takes(attack: Any) -> str:
    """Return what an attack takes as `y`, see `jaxrobust.losses`; a function anything.

    Example:
      >>> import jaxrobust as jr
      >>> print(takes(jr.PGD()), takes(jr.FAB(targeted=True)), takes(lambda: None))
      labels labels and targets anything
    """
    return getattr(attack, "takes", losses.ANYTHING)


# What a composition takes whose parts take different things.
MIXED = "labels in one part and something else in another"


def mixed(attack: Any) -> str:
    """Return the message for a composition that takes no single `y`."""
    return (
        f"{attack!r} holds attacks that take different things as y: labels in one part, "
        "targets or the like in another. Use jr.evaluate(..., y, target=...), which gives "
        "each part its own, or attacks that take the same."
    )


def needs_key(attack: Any) -> bool:
    """Return whether an attack says that it needs a key; a plain function says nothing.

    Example:
      >>> import jaxrobust as jr
      >>> needs_key(jr.PGD()), needs_key(jr.FGSM()), needs_key(lambda: None)
      (True, False, False)
    """
    return getattr(attack, "needs_key", False)


def check_takes_labels(attack: Any, name: str) -> None:
    """Raise where an attack takes something else than the labels that it will be given.

    Example:
      >>> import jaxrobust as jr
      >>> check_takes_labels(jr.PGD(), "attack")
    """
    kind = takes(attack)
    if kind not in (losses.LABELS, losses.ANYTHING):
        raise TypeError(
            f"{name}={attack!r} takes {kind}, and is given labels here: it would climb "
            "towards them. Choose a loss on labels, such as jr.losses.cross_entropy, or "
            "wrap what takes pairs in jr.Targets."
        )


def losses_with_y(attack: Any, y: Any, threat: Threat) -> list[tuple[Any, Any]]:
    """Return every loss inside an attack, with what it is given as `y`.

    Example:
      >>> import jaxrobust as jr
      >>> attack = jr.Targets(jr.APGD(loss=jr.losses.dlr_targeted))
      >>> [(loss, y)] = losses_with_y(attack, 7, jr.Linf(0.1))
      >>> print(loss.__name__, y)
      dlr_targeted (7, 7)
    """
    parts = getattr(attack, "parts", None)
    if parts is not None:
        inner = (losses_with_y(part, given, threat) for part, given in parts(y, threat))
        return [pair for pairs in inner for pair in pairs]
    loss = getattr(attack, "loss", None)
    return [] if loss is None else [(loss, y)]


def _is_wrapper(attack: Any) -> bool:
    return hasattr(attack, "init_item")
