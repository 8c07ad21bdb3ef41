"""Every public name has a docstring with an example, which runs as a doctest."""

import importlib
import inspect

import pytest

MODULES = [
    "jaxrobust",
    "jaxrobust.attacks",
    "jaxrobust.certify",
    "jaxrobust.evaluation",
    "jaxrobust.losses",
    "jaxrobust.models",
    "jaxrobust.data",
    "jaxrobust.plotting",
    "jaxrobust.training",
    "jaxrobust.surrogates.transforms",
]


def public_names(module):
    """Return what the module says is public, or defines without an underscore."""
    if hasattr(module, "__all__"):
        return module.__all__
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (getattr(value, "__module__", None) or "").startswith(module.__name__)
    ]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    names = public_names(module)
    assert names
    values = {n: getattr(module, n) for n in names}
    functions = {
        n: v for n, v in values.items() if callable(v) and not inspect.ismodule(v)
    }
    without = [
        n for n, v in functions.items() if ">>>" not in (inspect.getdoc(v) or "")
    ]
    assert without == []
