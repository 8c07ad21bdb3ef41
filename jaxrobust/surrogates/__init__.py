"""Models made attackable: gradients for what has none, draws, transformations."""

from jaxrobust.surrogates import transforms
from jaxrobust.surrogates.bpda import bpda
from jaxrobust.surrogates.expectation import Expectation, eot, randomized

__all__ = ["Expectation", "bpda", "eot", "randomized", "transforms"]
