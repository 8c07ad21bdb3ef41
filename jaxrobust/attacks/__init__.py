"""Attacks: the inner maximisation, as pure functions and as values."""

from jaxrobust.attacks.apgd import APGD, apgd
from jaxrobust.attacks.autoattack import AutoAttack, autoattack
from jaxrobust.attacks.cost import Cost
from jaxrobust.attacks.fab import FAB, fab
from jaxrobust.attacks.fgsm import FGSM, fgsm
from jaxrobust.attacks.pgd import PGD, pgd
from jaxrobust.attacks.spsa import SPSA, spsa
from jaxrobust.attacks.square import Square, square
from jaxrobust.attacks.targets import Targets
from jaxrobust.attacks.wrappers import Restarts, WorstOf
from jaxrobust.surrogates.bpda import bpda
from jaxrobust.surrogates.expectation import Expectation, eot, randomized

__all__ = [
    "APGD",
    "FAB",
    "FGSM",
    "PGD",
    "SPSA",
    "AutoAttack",
    "Cost",
    "Expectation",
    "Restarts",
    "Square",
    "Targets",
    "WorstOf",
    "apgd",
    "autoattack",
    "bpda",
    "eot",
    "fab",
    "fgsm",
    "pgd",
    "randomized",
    "spsa",
    "square",
]
