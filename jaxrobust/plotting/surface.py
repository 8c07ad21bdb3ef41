"""The loss around an example, and the path of an attack on it."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from jaxrobust import losses
from jaxrobust._core import batching
from jaxrobust.attacks._base import Stepped, as_attack
from jaxrobust.plotting.style import COLORS, one_axes
from jaxrobust.types import Array, LogitsFn, Loss, Threat


def iterates(
    attack: Any,
    logits_fn: LogitsFn,
    x: Array,
    y: Any,
    *,
    threat: Threat,
    key: Array | None = None,
) -> Array:
    """Return every iterate of an attack: its start and the point after each step.

    Madry et al. 2018, arXiv:1706.06083, section 3.1, look at the loss along such paths.

    Args:
      attack: `jr.PGD(...)`, or any attack with `num_steps`, `init` and `step` whose state
        has the current point as `x_adv`.
      logits_fn: Pure function from inputs `[B, ...]` to logits `[B, C]`.
      x: Clean inputs `[B, ...]`.
      y: What the attack's loss takes.
      threat: The threat model.
      key: A typed PRNG key; needed if the attack starts at random.

    Returns:
      `[num_steps + 1, B, ...]`.

    Raises:
      TypeError: If the attack does not show its steps.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> attack = jr.PGD(num_steps=2, step_size=0.25, random_start=False)
      >>> x, y = jnp.array([[0.5, 0.5]]), jnp.array([0])
      >>> print(iterates(attack, lambda x: x, x, y, threat=jr.Linf(0.5))[:, 0])
      [[0.5  0.5 ]
       [0.25 0.75]
       [0.   1.  ]]
    """
    machine = as_attack(attack)
    if not isinstance(machine, Stepped):
        raise TypeError(
            f"{attack!r} does not show its steps: an attack that is a state machine is "
            "needed, such as jr.PGD."
        )
    x, y = jnp.asarray(x), jax.tree.map(jnp.asarray, y)
    keys = None if key is None else batching.per_example_keys(key, len(x))
    state = machine.init(x, y, threat=threat, keys=keys)

    def step(state: Any, _: None) -> tuple[Any, Array]:
        state = machine.step(logits_fn, state, threat=threat)
        return state, machine.iterate(state, threat=threat)

    # The last call of an ascent evaluates where the others have led.
    is_ascent = machine.access == "gradients" and machine.is_evaluated
    _, path = jax.lax.scan(step, state, length=machine.num_calls - is_ascent)
    return jnp.concatenate([machine.iterate(state, threat=threat)[None], path])


def loss_surface(
    logits_fn: LogitsFn,
    x: Array,
    y: Any,
    directions: tuple[Array, Array],
    *,
    radius: float,
    paths: dict[str, Array] | None = None,
    threat: Threat | None = None,
    loss: Loss = losses.cross_entropy,
    num: int = 81,
    ax: Axes | None = None,
) -> Axes:
    """Draw the loss on a plane through one example, with paths and ball on it.

    Tramer et al. 2018, arXiv:1705.07204, figure 4: the loss at x + a d_1 + b d_2. Black:
    the boundary between right and wrong. Dashed: the edge of the threat's ball in this
    plane. A path is drawn as its least-squares projection onto the plane; what
    leaves the plane is not seen.

    Args:
      logits_fn: Pure function from inputs `[B, ...]` to logits `[B, C]`.
      x: One example, without the batch axis.
      y: Its label, or what the loss takes for one example.
      directions: d_1 and d_2, of the shape of `x`.
      radius: The plane is drawn for a and b in [-radius, radius].
      paths: Iterates `[T, ...]` by name, such as `iterates(...)[:, 0]`.
      threat: Whose ball to draw; none by default.
      loss: Per-example loss.
      num: Points of the grid on each axis.
      ax: Axes to draw on; a new figure by default.

    Returns:
      The axes.

    Raises:
      ValueError: If the directions do not have the shape of `x`.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> d1, d2 = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
      >>> path = {"step": jnp.array([[0.5, 0.5], [0.6, 0.5]])}
      >>> ax = loss_surface(lambda x: x, jnp.full(2, 0.5), 0, (d1, d2), radius=0.2,
      ...                   paths=path)
      >>> print(ax.lines[0].get_xdata().round(3))
      [0.  0.1]
    """
    x, y = jnp.asarray(x), jax.tree.map(jnp.asarray, y)
    plane = jnp.stack([jnp.asarray(d, x.dtype) for d in directions])
    if plane.shape != (2, *x.shape):
        raise ValueError(
            f"the directions have shapes {[jnp.shape(d) for d in directions]}, but two of "
            f"{x.shape}, the shape of x, are needed."
        )
    ax = one_axes(ax, size=(5.4, 4.2))
    at = np.linspace(-radius, radius, num)
    a, b = (jnp.asarray(grid.ravel(), x.dtype) for grid in np.meshgrid(at, at))
    points = x[None] + jnp.einsum("kn,k...->n...", jnp.stack([a, b]), plane)
    labels = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(a), *leaf.shape)), y)
    logits = jax.jit(logits_fn)(points).astype(jnp.float32)
    grid = (num, num)
    filled = ax.contourf(at, at, loss(logits, labels).reshape(grid), 20, cmap="cividis")
    cast(Any, ax.figure).colorbar(filled, ax=ax).set_label("loss (nats)")
    if jnp.ndim(y) == 0:  # a label: its region ends where the margin is 0
        margin = losses.margin(logits, labels).reshape(grid)
        ax.contour(at, at, margin, [0.0], colors="black", linewidths=1.5)
    if threat is not None:
        distance = threat.distance(points, jnp.broadcast_to(x, points.shape))
        edge = distance.reshape(grid) / jnp.asarray(threat.eps)
        ax.contour(at, at, edge, [1.0], colors="white", linestyles="dashed")
    _draw_paths(ax, x, plane, paths or {})
    ax.plot(0, 0, "w*", markersize=12, markeredgecolor="black")
    ax.set_xlabel("$a$ (multiples of $d_1$)")
    ax.set_ylabel("$b$ (multiples of $d_2$)")
    return ax


def _draw_paths(ax: Axes, x: Array, plane: Array, paths: dict[str, Array]) -> None:
    """Draw each path by its coordinates in the plane."""
    basis = np.asarray(plane.reshape(2, -1), np.float64).T
    colors = [COLORS[name] for name in ("vermillion", "sky", "orange", "purple")]
    for i, (name, path) in enumerate(paths.items()):
        moved = np.asarray(path - x[None], np.float64).reshape(len(path), -1)
        coordinates, *_ = np.linalg.lstsq(basis, moved.T)
        color = colors[i % len(colors)]
        ax.plot(*coordinates, ".-", color=color, label=name, markeredgecolor="white")
    if paths:
        ax.legend(frameon=True, framealpha=0.9, edgecolor="none")
