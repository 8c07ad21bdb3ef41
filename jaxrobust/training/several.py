"""Adversarial training against several threats at once."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrobust import losses
from jaxrobust._core import batching, checks, predictions, pytree
from jaxrobust.training.adversarial import adversarial
from jaxrobust.training.attacked import as_adversary, find, key_of_part, scaled
from jaxrobust.training.mixture import Mixture, mixture
from jaxrobust.training.objectives import Objective, risk
from jaxrobust.types import Array, Loss, Threat


@dataclasses.dataclass(frozen=True, repr=False)
class Several(Objective):
    """The mean loss at points that one of several adversaries has found."""

    attacks: tuple
    threats: tuple
    _: dataclasses.KW_ONLY
    loss: Loss = pytree.static(losses.cross_entropy)
    eps_schedule: optax.Schedule | None = pytree.static(None)

    @property
    def threat(self) -> tuple:  # pyrefly: ignore[bad-override]
        """All of them."""
        return self.threats

    def find(self, i: int, attacked_fn, x, y, *, key, step) -> Array:
        """Return what adversary number i finds."""
        threat = scaled(self.threats[i], self.eps_schedule, step)
        return find(self.attacks[i], attacked_fn, x, y, threat=threat, key=key)

    def outer(self, trained_fn, x, y, found, *, step) -> tuple[Array, dict[str, Array]]:
        """Return the mean loss at the attacked inputs."""
        del x, step
        return risk(self.loss, trained_fn(found), y)


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class Worst(Several):
    """(1/n) sum max over the threats of the loss; made by `worst_of`."""

    def inner(self, attacked_fn, x, y, *, key, step) -> Array:
        """Return for each example the point of the largest loss."""

        def found(i: int) -> tuple[Array, Array]:
            x_adv = self.find(i, attacked_fn, x, y, key=key_of_part(key, i), step=step)
            return x_adv, self.loss(predictions.wide(attacked_fn(x_adv)), y)

        worst, largest = found(0)
        for i in range(1, len(self.threats)):
            x_adv, value = found(i)
            is_worse = (value > largest) | jnp.isnan(value)  # training should see NaN
            worst = batching.where(is_worse, x_adv, worst)
            largest = jnp.where(is_worse, value, largest)
        return worst


@pytree.register
@dataclasses.dataclass(frozen=True, repr=False)
class One(Several):
    """The adversarial risk for a threat that is drawn for each batch; by `one_of`."""

    probabilities: Any

    def inner(self, attacked_fn, x, y, *, key, step) -> Array:
        """Return the points of the one that is drawn; only its attack runs."""
        if key is None:
            raise ValueError(
                "one_of draws a threat and needs a key: call the objective with "
                "key=jax.random.key(0), as jr.training.fit does."
            )
        draw_key, attack_key = jax.random.split(key)
        drawn = jax.random.choice(
            draw_key, len(self.threats), p=jnp.asarray(self.probabilities)
        )

        def branch(i: int):
            return lambda key: self.find(i, attacked_fn, x, y, key=key, step=step)

        branches = [branch(i) for i in range(len(self.threats))]
        return jax.lax.switch(drawn, branches, attack_key)


def worst_of(
    attacks: Any,
    threats: Sequence[Threat],
    *,
    loss: Loss = losses.cross_entropy,
    eps_schedule: optax.Schedule | None = None,
) -> Worst:
    """Return the objective of training against the worst of several threats.

    Tramer & Boneh 2019, arXiv:1904.13000, the MAX strategy: each example counts at the
    point of largest loss.

    A step costs all attacks, a forward pass for each threat and one gradient.

    Args:
      attacks: One attack for all threats, or one for each.
      threats: The threats, e.g. `[jr.Linf(8 / 255), jr.L2(0.5)]`.
      loss: Per-example loss `(logits, y) -> [B]` that training minimises.
      eps_schedule: Factor on every eps by training step, see `adversarial`.

    Returns:
      An objective `(trained_fn, attacked_fn, x, y, key=, step=) -> (loss, metrics)`.

    Raises:
      ValueError: If there are no threats, other attacks than threats, or an attack by `kl`
        starts at x.
      TypeError: If there is no list of threats, or an attack takes targets.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> objective = worst_of(jr.FGSM(), [jr.Linf(0.25), jr.L1(0.75)])
      >>> x, y, model = jnp.array([[0.75, 0.5]]), jnp.array([0]), lambda x: 9 * x
      >>> print(objective.inner(model, x, y, key=None, step=None))
      [[0.  0.5]]
    """
    attacks, threats = _pairs(attacks, threats, "worst_of")
    checks.check_loss(loss)
    return Worst(attacks, threats, loss=loss, eps_schedule=eps_schedule)


def average_of(
    attacks: Any,
    threats: Sequence[Threat],
    *,
    loss: Loss = losses.cross_entropy,
    eps_schedule: optax.Schedule | None = None,
) -> Mixture:
    """Return the mean of the adversarial objectives for several threats.

    Tramer & Boneh 2019, arXiv:1904.13000, the AVG strategy: a `mixture` of `adversarial`.

    A step costs all attacks and a gradient for each threat.

    Args:
      attacks: One attack for all threats, or one for each.
      threats: The threats, e.g. `[jr.Linf(8 / 255), jr.L2(0.5)]`.
      loss: Per-example loss `(logits, y) -> [B]` that training minimises.
      eps_schedule: Factor on every eps by training step, see `adversarial`.

    Returns:
      An objective `(trained_fn, attacked_fn, x, y, key=, step=) -> (loss, metrics)`.

    Raises:
      ValueError: If there are no threats, other attacks than threats, or an attack by `kl`
        starts at x.
      TypeError: If there is no list of threats, or an attack takes targets.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> objective = average_of(jr.FGSM(), [jr.Linf(0.25), jr.L1(0.75)])
      >>> x, y, model = jnp.array([[0.75, 0.5]]), jnp.array([0]), lambda x: 9 * x
      >>> print(f"{objective(model, model, x, y)[0]:.3f}")
      3.431
    """
    attacks, threats = _pairs(attacks, threats, "average_of")
    pairs = zip(attacks, threats, strict=True)
    return mixture([adversarial(*pair, loss, eps_schedule) for pair in pairs])


def one_of(
    attacks: Any,
    threats: Sequence[Threat],
    probabilities: Sequence[float] | None = None,
    *,
    loss: Loss = losses.cross_entropy,
    eps_schedule: optax.Schedule | None = None,
) -> One:
    """Return the adversarial objective for a threat that is drawn for each batch.

    Croce & Hein 2022 (E-AT), arXiv:2105.12508: for a robust model of one norm, three epochs
    with l_inf or l_1 at random make it robust to both and to l_2. The authors draw in
    proportion to the error under each threat so far; here the probabilities are fixed.

    A step costs one of the attacks and one gradient.

    Args:
      attacks: One attack for all threats, or one for each.
      threats: The threats, e.g. `[jr.Linf(8 / 255), jr.L1(12.0)]`.
      probabilities: How likely each is, in any unit; by default all equal.
      loss: Per-example loss `(logits, y) -> [B]` that training minimises.
      eps_schedule: Factor on every eps by training step, see `adversarial`.

    Returns:
      An objective `(trained_fn, attacked_fn, x, y, key=, step=) -> (loss, metrics)`.

    Raises:
      ValueError: If there are no threats, other attacks or probabilities than threats, or
        an attack by `kl` starts at x.
      TypeError: If there is no list of threats, or an attack takes targets.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> objective = one_of(jr.FGSM(), [jr.Linf(0.25), jr.L1(0.75)], [0.0, 1.0])
      >>> x, y, model = jnp.array([[0.75, 0.5]]), jnp.array([0]), lambda x: 9 * x
      >>> print(objective.inner(model, x, y, key=jax.random.key(0), step=None))
      [[0.  0.5]]
    """
    attacks, threats = _pairs(attacks, threats, "one_of")
    checks.check_loss(loss)
    given = np.ones(len(threats)) if probabilities is None else probabilities
    for i, number in enumerate(np.atleast_1d(given)):
        checks.check_number(number, f"one_of's probabilities[{i}]")
    odds = np.asarray(given, np.float64)
    if odds.shape != (len(threats),) or not 0 < odds.sum() < math.inf:
        raise ValueError(
            f"one_of(probabilities={probabilities!r}): {len(threats)} numbers of at least "
            "0 are needed, one for each threat, and not all 0."
        )
    probabilities = (odds / odds.sum()).astype(np.float32)
    return One(attacks, threats, probabilities, loss=loss, eps_schedule=eps_schedule)


def _pairs(attacks: Any, threats: Sequence[Threat], name: str) -> tuple[tuple, tuple]:
    one = "for one threat there is jr.training.adversarial(attack, threat)"
    checks.check_list(threats, "threats", one)
    some = attacks if isinstance(attacks, list | tuple) else [attacks] * len(threats)
    if not threats or len(some) != len(threats):
        raise ValueError(
            f"{name} has {len(some)} attacks and {len(threats)} threats: give at least one "
            "threat, and one attack for all or one for each."
        )
    pairs = [as_adversary(*pair, name) for pair in zip(some, threats, strict=True)]
    return tuple(attack for attack, _ in pairs), tuple(threat for _, threat in pairs)
