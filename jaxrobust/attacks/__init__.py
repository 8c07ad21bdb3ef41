"""Attacks: the inner maximisation, as pure functions and as values."""

from jaxrobust.attacks._base import Attack, Stepped
from jaxrobust.attacks.apgd import APGD
from jaxrobust.attacks.autoattack import AutoAttack, autoattack
from jaxrobust.attacks.cost import Cost
from jaxrobust.attacks.fab import FAB
from jaxrobust.attacks.fgsm import FGSM
from jaxrobust.attacks.functions import apgd, fab, fgsm, pgd, spsa, square
from jaxrobust.attacks.odi import ODI
from jaxrobust.attacks.pgd import PGD
from jaxrobust.attacks.spsa import SPSA
from jaxrobust.attacks.square import Square
from jaxrobust.attacks.targets import Targets
from jaxrobust.attacks.wrappers import Restarts, WorstOf
from jaxrobust.surrogates.bpda import bpda
from jaxrobust.surrogates.expectation import Expectation, eot, randomized

__all__ = [
    "APGD",
    "FAB",
    "FGSM",
    "ODI",
    "PGD",
    "SPSA",
    "Attack",
    "AutoAttack",
    "Cost",
    "Expectation",
    "Restarts",
    "Square",
    "Stepped",
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
