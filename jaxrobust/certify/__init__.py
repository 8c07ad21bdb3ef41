"""What can be proved about a classifier's robustness."""

from jaxrobust.certify.linear import linear_worst_case

__all__ = ["linear_worst_case"]
