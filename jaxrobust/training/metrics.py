"""What a run tells of itself: means of the steps' metrics, and whether all is finite."""

import collections
import math
from typing import Any

import jax
import jax.numpy as jnp

# The host reads the metrics of a call this many calls late: by then they are there, and
# reading them does not make the device wait. It also bounds the queue of calls.
CALLS_IN_FLIGHT = 8


class EpochMeans:
    """Means of the steps' metrics since the epoch began, in float64 on the host.

    Attributes:
      sums: metric -> sum over the epoch's steps so far.
      count: steps so far.
      latest: the newest metrics that have been read.
    """

    def __init__(self, sums: dict[str, float] | None = None, count: int = 0):
        """Start from the sums and the count of an interrupted epoch."""
        self.sums = dict(sums or {})
        self.count = count
        self.latest: dict[str, float] = {}
        self._pending: collections.deque = collections.deque()

    def push(self, step: int, num_steps: int, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics `[>= num_steps]` of the steps from `step` on.

        They may still be being computed.
        """
        self._pending.append((step, num_steps, metrics))
        if len(self._pending) > CALLS_IN_FLIGHT:
            self._read(*self._pending.popleft())

    def drain(self) -> None:
        """Wait for all steps and read their metrics."""
        while self._pending:
            self._read(*self._pending.popleft())

    def means(self) -> dict[str, float]:
        """Return train_NAME -> mean, and forget the epoch."""
        self.drain()
        means = {f"train_{name}": s / self.count for name, s in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def _read(self, step: int, num_steps: int, metrics: dict[str, Any]) -> None:
        arrays = jax.device_get(metrics)
        for i in range(num_steps):
            self._add(step + i, {name: float(a[i]) for name, a in arrays.items()})

    def _add(self, step: int, metrics: dict[str, float]) -> None:
        self.latest = metrics
        for name in ("loss", "grad_norm"):
            if not math.isfinite(self.latest[name]):
                raise _diverged(f"{name} is {self.latest[name]} at step {step}")
        for name, value in self.latest.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1


class FiniteCheck:
    """Raises where arrays have become infinite or NaN that were not so at the start.

    The loss and the gradient of a step say nothing of what its own update does.
    """

    def __init__(self, state: Any):
        """Note which arrays hold such values on purpose, as masks of -inf do."""
        self._exempt = _not_finite(state)

    def __call__(self, state: Any, step: int) -> None:
        """Raise FloatingPointError for a `TrainState` after so many steps."""
        bad = sorted(_not_finite(state) - self._exempt)
        if bad:
            raise _diverged(
                f"after step {step - 1}, {len(bad)} arrays of the model hold infinite "
                f"or NaN values, {bad[0]!r} among them"
            )


@jax.jit
def _are_finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def _not_finite(state: Any) -> set[str]:
    """Return the names of the floating-point arrays with other values."""
    tree = {"weights": state.weights, "ema": state.ema}
    named = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    found = jax.device_get(_are_finite([*named.values()]))
    return {name for name, is_finite in zip(named, found, strict=True) if not is_finite}


def _diverged(what: str) -> FloatingPointError:
    return FloatingPointError(
        f"training diverged: {what}. Use a smaller learning rate, a warm-up or "
        "optax.clip_by_global_norm; start again in an empty `out` or with resume=False."
    )
