"""The attacks as functions: `pgd(logits_fn, x, y, threat=..., ...)` runs `PGD(...)` once.

Each takes the fields of its class as keywords, with the same defaults (a test compares
them), and `num_restarts`, of which the best result is kept.
"""

from collections.abc import Callable
from typing import Any

import optax
from jax.typing import ArrayLike

from jaxrobust import losses
from jaxrobust.attacks._base import Attack
from jaxrobust.attacks.apgd.apgd import APGD
from jaxrobust.attacks.fab.fab import FAB
from jaxrobust.attacks.fgsm import FGSM
from jaxrobust.attacks.pgd import PGD
from jaxrobust.attacks.spsa.spsa import SPSA
from jaxrobust.attacks.square.layout import ChannelAxis
from jaxrobust.attacks.square.square import Square
from jaxrobust.attacks.wrappers import Restarts
from jaxrobust.types import Array, LogitsFn, Loss, Threat


def fgsm(
    logits_fn: LogitsFn,
    x: Array,
    y: Any,
    *,
    threat: Threat,
    key: Array | None = None,
    num_restarts: int = 1,
    step_size: ArrayLike | None = None,
    rel_step_size: ArrayLike | None = None,
    loss: Loss = losses.cross_entropy,
    random_start: bool = False,
) -> Array:
    """Attack by one step of the fast gradient sign method; the function form of `FGSM`.

    Goodfellow et al. 2015, arXiv:1412.6572.

    Args:
      logits_fn: Pure function from inputs `[B, ...]` to logits `[B, C]`.
      x: Clean inputs `[B, ...]`.
      y: What the attack takes, labels `[B]` by default.
      threat: The threat model.
      key: A typed PRNG key, where random numbers are drawn.
      num_restarts: Independent runs, of which the best result is kept.
      **settings: The others are the fields of `FGSM`.

    Returns:
      `x_adv [B, ...]`.

    Raises:
      ValueError, TypeError: On misuse, with advice.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> model, x, y = (lambda x: 3 * x), jnp.full((1, 2), 0.5), jnp.array([0])
      >>> print(fgsm(model, x, y, threat=jr.Linf(0.25)))
      [[0.25 0.75]]
    """
    return _run(FGSM, **locals())


def pgd(
    logits_fn: LogitsFn,
    x: Array,
    y: Any,
    *,
    threat: Threat,
    key: Array | None = None,
    num_restarts: int = 1,
    num_steps: int = 20,
    step_size: ArrayLike | None = None,
    rel_step_size: ArrayLike | None = None,
    loss: Loss = losses.cross_entropy,
    random_start: bool = True,
    keep_best: bool = True,
    momentum: ArrayLike | None = None,
    optimizer: optax.GradientTransformation | None = None,
    step_schedule: optax.Schedule | None = None,
) -> Array:
    """Attack by projected gradient ascent; the function form of `PGD`.

    Madry et al. 2018, arXiv:1706.06083.

    Args:
      logits_fn: Pure function from inputs `[B, ...]` to logits `[B, C]`.
      x: Clean inputs `[B, ...]`.
      y: What the attack takes, labels `[B]` by default.
      threat: The threat model.
      key: A typed PRNG key, where random numbers are drawn.
      num_restarts: Independent runs, of which the best result is kept.
      **settings: The others are the fields of `PGD`.

    Returns:
      `x_adv [B, ...]`.

    Raises:
      ValueError, TypeError: On misuse, with advice.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> model, x, y = (lambda x: 3 * x), jnp.full((1, 2), 0.5), jnp.array([0])
      >>> print(pgd(model, x, y, threat=jr.Linf(0.25), num_steps=10, key=jax.random.key(0)))
      [[0.25 0.75]]
    """
    return _run(PGD, **locals())


def apgd(
    logits_fn: LogitsFn,
    x: Array,
    y: Any,
    *,
    threat: Threat,
    key: Array | None = None,
    num_restarts: int = 1,
    num_steps: int = 100,
    loss: Loss = losses.cross_entropy,
    rho: ArrayLike = 0.75,
    radii: tuple[tuple[float, float], ...] = (
        (3.0, 0.3),
        (2.0, 0.3),
        (1.0, 0.4),
    ),
) -> Array:
    """Attack by Auto-PGD; the function form of `APGD`.

    Croce & Hein 2020, arXiv:2003.01690.

    Args:
      logits_fn: Pure function from inputs `[B, ...]` to logits `[B, C]`.
      x: Clean inputs `[B, ...]`.
      y: What the attack takes, labels `[B]` by default.
      threat: The threat model.
      key: A typed PRNG key, where random numbers are drawn.
      num_restarts: Independent runs, of which the best result is kept.
      **settings: The others are the fields of `APGD`.

    Returns:
      `x_adv [B, ...]`.

    Raises:
      ValueError, TypeError: On misuse, with advice.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> model, x, y = (lambda x: 3 * x), jnp.full((1, 2), 0.5), jnp.array([0])
      >>> key = jax.random.key(0)
      >>> print(apgd(model, x, y, threat=jr.Linf(0.25), num_steps=10, key=key))
      [[0.25 0.75]]
    """
    return _run(APGD, **locals())


def fab(
    logits_fn: LogitsFn,
    x: Array,
    y: Any,
    *,
    threat: Threat,
    key: Array | None = None,
    num_restarts: int = 1,
    num_steps: int = 100,
    alpha_max: ArrayLike = 0.1,
    eta: ArrayLike = 1.05,
    beta: ArrayLike = 0.9,
    targeted: bool = False,
    random_start: bool = False,
) -> Array:
    """Attack by the fast adaptive boundary method; the function form of `FAB`.

    Croce & Hein 2020, arXiv:1907.02044.

    Args:
      logits_fn: Pure function from inputs `[B, ...]` to logits `[B, C]`.
      x: Clean inputs `[B, ...]`.
      y: What the attack takes, labels `[B]` by default.
      threat: The threat model.
      key: A typed PRNG key, where random numbers are drawn.
      num_restarts: Independent runs, of which the best result is kept.
      **settings: The others are the fields of `FAB`.

    Returns:
      `x_adv [B, ...]`.

    Raises:
      ValueError, TypeError: On misuse, with advice.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> model, x, y = (lambda x: 3 * x), jnp.array([[0.75, 0.25]]), jnp.array([0])
      >>> print(fab(model, x, y, threat=jr.Linf(0.3), num_steps=10).round(2))
      [[0.5 0.5]]
    """
    return _run(FAB, **locals())


def square(
    logits_fn: LogitsFn,
    x: Array,
    y: Any,
    *,
    threat: Threat,
    key: Array | None = None,
    num_restarts: int = 1,
    num_queries: int = 5000,
    p_init: ArrayLike = 0.8,
    loss: Loss = losses.margin,
    rescale_schedule: bool = False,
    channel_axis: ChannelAxis = "auto",
) -> Array:
    """Attack by random search over square windows; the function form of `Square`.

    Andriushchenko et al. 2020, arXiv:1912.00049.

    Args:
      logits_fn: Pure function from inputs `[B, ...]` to logits `[B, C]`.
      x: Clean inputs `[B, ...]`.
      y: What the attack takes, labels `[B]` by default.
      threat: The threat model.
      key: A typed PRNG key, where random numbers are drawn.
      num_restarts: Independent runs, of which the best result is kept.
      **settings: The others are the fields of `Square`.

    Returns:
      `x_adv [B, ...]`.

    Raises:
      ValueError, TypeError: On misuse, with advice.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> model, x, y = (lambda x: 3 * x), jnp.full((1, 2), 0.5), jnp.array([0])
      >>> key = jax.random.key(0)
      >>> print(square(model, x, y, threat=jr.Linf(0.25), num_queries=50, key=key))
      [[0.25 0.75]]
    """
    return _run(Square, **locals())


def spsa(
    logits_fn: LogitsFn,
    x: Array,
    y: Any,
    *,
    threat: Threat,
    key: Array | None = None,
    num_restarts: int = 1,
    num_steps: int = 100,
    num_samples: int = 128,
    delta: ArrayLike = 0.01,
    step_size: ArrayLike | None = None,
    rel_step_size: ArrayLike | None = None,
    loss: Loss = losses.margin,
    random_start: bool = False,
    momentum: ArrayLike | None = None,
    optimizer: optax.GradientTransformation | None = None,
    step_schedule: optax.Schedule | None = None,
    chunk_size: int | None = None,
) -> Array:
    """Attack by ascent along estimated gradients; the function form of `SPSA`.

    Uesato et al. 2018, arXiv:1802.05666.

    Args:
      logits_fn: Pure function from inputs `[B, ...]` to logits `[B, C]`.
      x: Clean inputs `[B, ...]`.
      y: What the attack takes, labels `[B]` by default.
      threat: The threat model.
      key: A typed PRNG key, where random numbers are drawn.
      num_restarts: Independent runs, of which the best result is kept.
      **settings: The others are the fields of `SPSA`.

    Returns:
      `x_adv [B, ...]`.

    Raises:
      ValueError, TypeError: On misuse, with advice.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> model, x, y = (lambda x: 3 * x), jnp.full((1, 2), 0.5), jnp.array([0])
      >>> print(spsa(model, x, y, threat=jr.Linf(0.25), num_steps=10, num_samples=8,
      ...            key=jax.random.key(0)))
      [[0.25 0.75]]
    """
    return _run(SPSA, **locals())


def _run(
    kind: Callable[..., Attack],
    logits_fn: LogitsFn,
    x: Array,
    y: Any,
    *,
    threat: Threat,
    key: Array | None,
    num_restarts: int,
    **settings: Any,
) -> Array:
    """Run an attack with the arguments of its function form: the others are its fields."""
    attack = kind(**settings)
    if num_restarts != 1:
        attack = Restarts(attack, num_restarts)
    return attack(logits_fn, x, y, threat=threat, key=key)
