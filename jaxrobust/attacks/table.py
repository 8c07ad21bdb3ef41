"""The table of attacks: what each needs and costs, read from the attacks themselves."""

from jaxrobust._core.citations import arxiv
from jaxrobust.attacks._base import Attack
from jaxrobust.attacks.apgd.apgd import APGD
from jaxrobust.attacks.autoattack import autoattack
from jaxrobust.attacks.fab.fab import FAB
from jaxrobust.attacks.fgsm import FGSM
from jaxrobust.attacks.odi import ODI
from jaxrobust.attacks.pgd import PGD
from jaxrobust.attacks.spsa.spsa import SPSA
from jaxrobust.attacks.square.square import Square
from jaxrobust.attacks.targets import Targets
from jaxrobust.losses import dlr_targeted
from jaxrobust.threats import L2

_COLUMNS = (
    "attack",
    "norms",
    "takes",
    "access",
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
        Targets(ODI()),
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


def _row(attack: Attack) -> dict[str, str]:
    cost, machine = attack.total_cost(), attack.machine
    assert cost is not None
    parts = [part for part, _ in attack.parts(None, L2(0.0))]
    papers = (parts[0] if len(parts) == 1 else attack).papers
    return {
        "attack": repr(attack).replace("AutoAttack", "autoattack"),
        # Threats are values of their own: an attack takes each of them.
        "norms": "l_inf, l_2, l_1",
        "takes": attack.takes,
        "access": "all of these" if machine is None else machine.access,
        "random": "yes" if attack.needs_key else "no",
        "gradient evaluations": f"{cost.gradients:,}",
        "forwards": f"{cost.forwards:,}",
        "paper": arxiv(papers[0]),
    }
