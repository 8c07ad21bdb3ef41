"""The Square attack: random search over square windows."""

from jaxrobust.attacks.square.square import Square

__all__ = ["Square"]
