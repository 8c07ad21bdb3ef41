"""Importing jaxrobust costs jax and optax."""

import ast
import graphlib
import pathlib
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


ROOT = pathlib.Path(__file__).parents[1] / "jaxrobust"
# Arrows go from right to left.
ROOMS = ["types", "_core", "losses", "threats", "surrogates", "_cpu", "attacks"]
ROOMS += ["certify", "models", "data", "evaluation", "training", "plotting"]
# What a report saves, plotting draws; it is loaded then.
EXCEPTIONS = {("evaluation", "plotting")}


def name_of(path):
    parts = ("jaxrobust", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in ROOT.rglob("*.py")}


def is_for_types(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(path):
    """Return the modules of ours that a file imports, at its top or in a function."""
    nodes, found = [ast.parse(path.read_text())], set()
    while nodes:
        node = nodes.pop()
        nodes += [n for n in ast.iter_child_nodes(node) if not is_for_types(n)]
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return {name for name in found if name.split(".")[0] == "jaxrobust"}


GRAPH = {name: imports(path) - {name} for name, path in MODULES.items()}


def test_no_circle():
    """There is an order in which every module comes after all that it imports."""
    assert len(GRAPH) > 80
    graphlib.TopologicalSorter(GRAPH).prepare()


def test_no_arrow_upwards():
    """A room imports from those before it only."""
    room_of = {name: [*name.split("."), ""][1] for name in GRAPH}
    arrows = {
        (room_of[name], room_of[other])
        for name, others in GRAPH.items()
        for other in others
    }
    arrows = {(a, b) for a, b in arrows if a and b and a != b} - EXCEPTIONS
    assert len(arrows) > 20
    upwards = {(a, b) for a, b in arrows if ROOMS.index(a) < ROOMS.index(b)}
    assert not upwards
