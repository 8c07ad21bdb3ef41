"""The fast adaptive boundary attack."""

from jaxrobust.attacks.fab.fab import FAB

__all__ = ["FAB"]
