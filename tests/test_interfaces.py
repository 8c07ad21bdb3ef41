"""Pages of docs/ for those who write their own: every example runs, as it stands there."""

import pathlib
import re

import pytest

from jaxrobust import training

DOCS = pathlib.Path(__file__).parents[1] / "docs"
# Page -> an attack (two), a threat, a loss, an objective with a gradient; ACAT, TRADES;
# Linen, Equinox, NNX, several seeds.
NUM_EXAMPLES = {"interfaces.md": 5, "training.md": 2, "own_loop.md": 4}
CODE = {
    name: re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)
    for name in NUM_EXAMPLES
}


def test_there_are_examples():
    assert {name: len(blocks) for name, blocks in CODE.items()} == NUM_EXAMPLES


@pytest.mark.parametrize(
    ("name", "code"),
    [
        pytest.param(
            name, code, marks=pytest.mark.slow if name == "own_loop.md" and i else ()
        )
        for name in CODE
        for i, code in enumerate(CODE[name])
    ],
)
def test_example_runs(name, code):
    """Nothing is needed but what the example imports, and its assertions hold."""
    assert "assert " in code
    exec(compile(code, name, "exec"), {"__name__": "example"})


def test_every_method_has_its_line():
    """What is public in `training`, without the loop and its files."""
    loop = {"FitResult", "fit", "load_checkpoint", "prepare_out", "save_checkpoint"}
    text = (DOCS / "training.md").read_text()
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`(.*?)`", text))))
    assert set(training.__all__) - loop <= named
