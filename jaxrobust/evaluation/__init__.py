"""Evaluation: how robust is a classifier, and how sure are we."""

from jaxrobust.evaluation.costs import estimate
from jaxrobust.evaluation.curve import Curve, robustness_curve
from jaxrobust.evaluation.diagnosis import Check, Diagnosis, diagnose
from jaxrobust.evaluation.evaluate import evaluate
from jaxrobust.evaluation.intervals import wilson
from jaxrobust.evaluation.partial import PartialReport
from jaxrobust.evaluation.report import Report
from jaxrobust.evaluation.union import UnionReport

__all__ = [
    "Check",
    "Curve",
    "Diagnosis",
    "PartialReport",
    "Report",
    "UnionReport",
    "diagnose",
    "estimate",
    "evaluate",
    "robustness_curve",
    "wilson",
]
