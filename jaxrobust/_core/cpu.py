"""Whether a program is for XLA:CPU, and what follows from that; nobody else asks.

The convolutions are in `_cpu`; this is here as `batching` asks, on which all stands.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp


def is_target() -> bool:
    """Return whether JAX's default device is a CPU.

    What is traced under another one is traced anew: it is among the keys of JAX's caches.
    """
    device = cast(Any, jax.config).jax_default_device  # a Device, a name or None
    if device is None:
        return jax.default_backend() == "cpu"
    return getattr(device, "platform", device) == "cpu"


def opaque(x: jax.Array) -> jax.Array:
    """Return `x`; on the CPU, XLA does not see how it has come about."""
    return jax.lax.optimization_barrier(x) if is_target() else x


def computed_once(x: jax.Array) -> jax.Array:
    """Return `x`; on the CPU, by a product that XLA does not merge with what uses it.

    XLA:CPU (JAX 0.10.2) repeats cheap producers, as the last sums of a gradient, in each of
    their uses, a barrier or not. No axis is merged: the batch may be sharded.
    """
    if not is_target():
        return x
    pairs = jnp.stack([x, jnp.zeros_like(x)], axis=-1)
    return jnp.matmul(pairs, jnp.ones(2, x.dtype), precision="highest")


def steps_per_call() -> int:
    """Return how many steps of a training one call takes.

    On the CPU a call asks the system for its memory anew, and the bar should move.
    """
    return 10 if is_target() else 100


def batch_size(num_devices: int) -> int:
    """Return how many examples an evaluation works on at a time.

    On two cores 128 small images were a tenth faster than 64, and 256 were not faster.
    """
    return 128 if is_target() else 512 * num_devices
