"""Every notebook runs from a clean kernel without network, and is the one committed.

`python -m pytest notebooks` runs them all; `-k 03` one. A failing cell fails the test.
"""

import importlib.util
import pathlib
import re

import nbformat
import pytest

HERE = pathlib.Path(__file__).resolve().parent
_SPEC = importlib.util.spec_from_file_location("execute", HERE / "execute.py")
assert _SPEC is not None and _SPEC.loader is not None
execute = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(execute)

# 1.5 MB of text and pictures is what a web page still shows at once.
MAX_BYTES = 1_500_000
each_notebook = pytest.mark.parametrize(
    "source", execute.SOURCES, ids=[source.stem for source in execute.SOURCES]
)


def test_there_are_notebooks():
    """An empty list of sources would make every other test pass."""
    assert len(execute.SOURCES) >= 7
    written = {path.stem for path in HERE.glob("*.ipynb")}
    assert written == {source.stem for source in execute.SOURCES}


@each_notebook
def test_runs_from_a_clean_kernel(source):
    """No cell fails, and none complains on stderr."""
    notebook = execute.execute(source)
    outputs = [o for c in notebook.cells if "outputs" in c for o in c.outputs]
    assert outputs
    assert [o.text for o in outputs if o.get("name") == "stderr"] == []


@each_notebook
def test_notebook_is_written_from_its_source(source):
    """Cells are equal in kind and text; outputs are there for pictures and prints."""
    expected = execute.read(source)
    written = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(written)
    assert [(c.cell_type, c.source) for c in written.cells] == [
        (c.cell_type, c.source) for c in expected.cells
    ]
    code = [cell for cell in written.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = [kind for c in code for o in c.outputs for kind in o.get("data", {})]
    assert "image/png" in kinds


@each_notebook
def test_notebook_can_be_published(source):
    """Small, without the paths of the machine that ran it, with hidden solutions."""
    text = source.with_suffix(".ipynb").read_text()
    assert len(text) < MAX_BYTES
    assert re.findall(r"/(?:home|Users|tmp|root|work)/\S+", text) == []
    for part in ("you will be able to", "## Exercises", "<details>"):
        assert part in source.read_text(), part
