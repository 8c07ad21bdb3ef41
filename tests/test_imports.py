"""Importing jaxrobust costs jax and optax."""

import subprocess
import sys

import pytest

HEAVY = ("flax", "orbax", "tensorflow", "tensorflow_datasets", "matplotlib")
HEAVY += ("sklearn", "rich", "tyro", "equinox", "haiku", "scipy.stats", "grain")


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_import_is_light():
    """Neural network libraries, data sets and plots are loaded where they are used."""
    code = f"import sys, jaxrobust; print([m for m in {HEAVY} if m in sys.modules])"
    assert run(code) == "[]"


@pytest.mark.parametrize("name", ["data", "models", "plotting"])
def test_lazy_modules(name):
    """The lazy modules are there when they are asked for, and listed."""
    code = (
        f"import jaxrobust as jr; assert {name!r} in dir(jr); print(jr.{name}.__name__)"
    )
    assert run(code) == f"jaxrobust.{name}"


def test_every_public_name_exists():
    """`__all__` promises nothing that is not there."""
    code = (
        "import jaxrobust as jr; print([n for n in jr.__all__ if not hasattr(jr, n)])"
    )
    assert run(code) == "[]"
