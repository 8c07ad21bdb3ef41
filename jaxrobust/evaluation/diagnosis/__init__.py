"""Tests that an evaluation can be believed: is there a gradient, does it help?"""

from jaxrobust.evaluation.diagnosis.diagnose import diagnose
from jaxrobust.evaluation.diagnosis.diagnosis import Check, Diagnosis

__all__ = ["Check", "Diagnosis", "diagnose"]
