"""The fast adaptive boundary attack."""

from jaxrobust.attacks.fab.fab import FAB, fab

__all__ = ["FAB", "fab"]
