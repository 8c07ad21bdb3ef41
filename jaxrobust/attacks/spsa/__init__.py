"""SPSA: ascent along estimated gradients."""

from jaxrobust.attacks.spsa.spsa import SPSA

__all__ = ["SPSA"]
