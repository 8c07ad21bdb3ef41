"""The Square attack: random search over square windows."""

from jaxrobust.attacks.square.square import Square, square

__all__ = ["Square", "square"]
