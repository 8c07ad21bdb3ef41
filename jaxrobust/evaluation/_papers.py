"""Which papers to cite for an evaluation: those of all attacks that were used."""

from jaxrobust.attacks._base import Attack
from jaxrobust.types import Threat


def papers(attack: Attack, threat: Threat) -> tuple[str, ...]:
    """Return the keys of the papers of an attack and of all that it is made of."""
    found = dict.fromkeys(_collect(attack, threat))
    # It brought APGD and Square to l_1.
    has_l1_version = {"croce2020autoattack", "andriushchenko2020"} & found.keys()
    if threat.order == 1 and has_l1_version:
        found["croce2021l1"] = None
    found["carlini2019"] = None
    return tuple(found)


def _collect(attack: Attack, threat: Threat) -> list[str]:
    inner = [_collect(part, threat) for part, _ in attack.parts(None, threat)]
    return [*attack.papers, *(key for keys in inner for key in keys)]
