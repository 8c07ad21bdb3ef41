"""SPSA: ascent along estimated gradients."""

from jaxrobust.attacks.spsa.spsa import SPSA, spsa

__all__ = ["SPSA", "spsa"]
