"""docs/interfaces.md: every example runs, as it stands there."""

import pathlib
import re

import pytest

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "interfaces.md"
BLOCKS = re.findall(r"## ([^\n]*)|```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_there_are_examples():
    """An attack (two), a threat, a loss, an objective with a gradient."""
    assert sum(bool(code) for _, code in BLOCKS) == 5


@pytest.mark.parametrize("code", [code for _, code in BLOCKS if code])
def test_example_runs(code):
    """Nothing is needed but what the example imports, and its assertions hold."""
    assert "assert " in code
    exec(compile(code, str(PAGE), "exec"), {"__name__": "example"})
