"""Attacks: the inner maximisation, as pure functions and as values."""

from jaxrobust.attacks.cost import Cost
from jaxrobust.attacks.fgsm import FGSM, fgsm
from jaxrobust.attacks.pgd import PGD, pgd
from jaxrobust.attacks.wrappers import Restarts, WorstOf

__all__ = ["FGSM", "PGD", "Cost", "Restarts", "WorstOf", "fgsm", "pgd"]
