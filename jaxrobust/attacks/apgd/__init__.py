"""Auto-PGD: ascent with momentum that halves its steps when it stalls."""

from jaxrobust.attacks.apgd.apgd import APGD, apgd

__all__ = ["APGD", "apgd"]
