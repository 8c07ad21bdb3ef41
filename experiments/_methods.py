"""The training methods that `compare_methods` compares, and what a step of each costs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jaxrobust as jr

_T = jr.training


@dataclasses.dataclass(frozen=True)
class Method:
    """A training method.

    Attributes:
      objective: (threat, eps schedule, helper model) -> the objective.
      attack: of one step, for its cost.
      outer: gradients of a step besides the attack's, per example.
      gradient: how the objective is differentiated, where it matters.
      ramp: share of the run in which eps grows from 0; None: as for the data set.
    """

    objective: Callable[[Any, Any, Any], Any]
    attack: Any = None
    outer: int = 1
    gradient: Any = None
    ramp: float | None = None

    def cost(self, num_classes: int) -> float:
        """Return the gradients of a step per example; a forward pass counts a third."""
        if self.attack is None:
            return self.outer
        cost = self.attack.total_cost(num_classes)
        return self.outer + cost.gradients + cost.forwards / 3


def methods(num_steps: int) -> dict[str, Method]:
    """Return every method by its name, with PGD of so many steps where it has PGD."""
    rel = 2.5 / num_steps
    options: dict[str, Any] = dict(rel_step_size=rel, keep_best=False)
    pgd = jr.PGD(num_steps=num_steps, **options)
    pgd_kl = jr.PGD(num_steps=num_steps, loss=jr.losses.kl, **options)
    two_kl = jr.PGD(num_steps=2, rel_step_size=1.0, keep_best=False, loss=jr.losses.kl)
    fgsm_rs = jr.FGSM(random_start=True, rel_step_size=1.25)
    targeted = jr.losses.targeted(jr.losses.cross_entropy)
    random = _T.RandomTargets(jr.PGD(num_steps=num_steps, loss=targeted, **options))

    def on(attack: Any) -> Method:
        return Method(lambda t, s, h: _T.adversarial(attack, t, eps_schedule=s), attack)

    def trades(t: Any, s: Any, h: Any) -> Any:
        return _T.trades(pgd_kl, t, eps_schedule=s)

    return {
        "standard": Method(lambda t, s, h: _T.standard()),
        "FGSM": on(jr.FGSM()),
        "FGSM-RS": on(fgsm_rs),
        "N-FGSM": on(_T.NFGSM()),
        "GradAlign": Method(
            lambda t, s, h: _T.gradalign(jr.FGSM(), t, eps_schedule=s), jr.FGSM(), 5
        ),
        "PGD": on(pgd),
        "random targets": on(random),
        "PGD + AWP": dataclasses.replace(on(pgd), outer=2, gradient=_T.AWP(0.01)),
        "PGD + SAM": dataclasses.replace(on(pgd), outer=2, gradient=_T.SAM(0.05)),
        "clean and PGD": Method(
            lambda t, s, h: _T.mixture(
                [_T.standard(), _T.adversarial(pgd, t, eps_schedule=s)]
            ),
            pgd,
            2,
        ),
        "ALP": Method(lambda t, s, h: _T.alp(pgd, t, eps_schedule=s), pgd, 2),
        "TRADES": Method(trades, pgd_kl, 2),
        "TRADES + AWP": Method(trades, pgd_kl, 4, _T.AWP(0.005)),
        "ACAT": Method(
            lambda t, s, h: _T.trades(two_kl, t, eps_schedule=s), two_kl, 2, ramp=1.0
        ),
        "MART": Method(lambda t, s, h: _T.mart(pgd, t, eps_schedule=s), pgd, 2),
        "IKL": Method(lambda t, s, h: _T.ikl(pgd_kl, t, eps_schedule=s), pgd_kl, 2),
        "HAT": Method(lambda t, s, h: _T.hat(pgd_kl, t, h, eps_schedule=s), pgd_kl, 3),
        "distilled": Method(
            lambda t, s, h: _T.distilled(pgd, t, [h], (0.9, 0.1), eps_schedule=s), pgd
        ),
    }
