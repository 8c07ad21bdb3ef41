"""Auto-PGD: ascent with momentum that halves its steps when it stalls."""

from jaxrobust.attacks.apgd.apgd import APGD

__all__ = ["APGD"]
