"""The table of attacks: what each needs and costs, read from the attacks themselves."""

import dataclasses
import inspect
import re
from typing import Any

from jaxrobust.attacks.apgd import APGD
from jaxrobust.attacks.autoattack import AutoAttack, autoattack
from jaxrobust.attacks.cost import Cost
from jaxrobust.attacks.fab import FAB
from jaxrobust.attacks.fgsm import FGSM
from jaxrobust.attacks.pgd import PGD
from jaxrobust.attacks.spsa import SPSA
from jaxrobust.attacks.square import Square
from jaxrobust.attacks.targets import Targets
from jaxrobust.losses import dlr_targeted

_COLUMNS = (
    "attack",
    "norms",
    "targeted",
    "gradients",
    "random",
    "gradient evaluations",
    "forwards",
    "paper",
)


def rows() -> list[dict[str, str]]:
    """Return one row for each attack at its default settings.

    Costs are evaluations of the model for an example that nothing breaks (10 classes).

    Example:
      >>> for row in rows()[:2]:
      ...     print(row["attack"], row["gradient evaluations"], row["paper"])
      FGSM() 1 arXiv:1412.6572
      PGD() 20 arXiv:1706.06083
    """
    attacks = (
        FGSM(),
        PGD(),
        APGD(),
        Targets(APGD(loss=dlr_targeted)),
        FAB(),
        Targets(FAB(targeted=True)),
        Square(),
        SPSA(),
        autoattack(),
    )
    return [_row(attack) for attack in attacks]


def markdown() -> str:
    """Return the table in Markdown, as in the README."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    for row in rows():
        cells = [row[name] for name in _COLUMNS]
        cells[0] = f"`jr.{cells[0]}`"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _row(attack: Any) -> dict[str, str]:
    cost = attack.cost
    if cost is None:  # untargeted FAB: its cost grows with the number of classes
        cost = Cost(*(n * attack.num_evaluations for n in attack.step_cost(10)))
    inner = attack.attack if isinstance(attack, Targets) else attack
    return {
        "attack": "autoattack()" if isinstance(attack, AutoAttack) else repr(attack),
        # Threats are values of their own: an attack takes each of them.
        "norms": "l_inf, l_2, l_1",
        "targeted": _targeted(attack),
        "gradients": "yes" if cost.gradients else "no",
        "random": "yes" if attack.needs_key else "no",
        "gradient evaluations": f"{cost.gradients:,}",
        "forwards": f"{cost.forwards:,}",
        "paper": _paper(type(inner)),
    }


def _targeted(attack: Any) -> str:
    if isinstance(attack, AutoAttack):
        return "any wrong class"
    if isinstance(attack, Targets):
        return "the likeliest wrong classes"
    if isinstance(attack, FAB):
        return "`targeted=True`"
    names = {field.name for field in dataclasses.fields(attack)}
    return "`loss=targeted(...)`" if "loss" in names else "no"


def _paper(kind: type) -> str:
    text = inspect.getdoc(autoattack if kind is AutoAttack else kind) or ""
    found = re.search(r"arXiv:\d{4}\.\d{4,5}", text)
    return found[0] if found else ""
