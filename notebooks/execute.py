"""Run the notebooks from a clean kernel and write them with their outputs.

Command   python notebooks/execute.py              (all)
          python notebooks/execute.py 03 04        (those whose names begin so)
Time      a few minutes on 2 cores for all

`03_linear_brittleness.py` is the source (Jupytext's percent format) and is what one edits;
`03_linear_brittleness.ipynb` is written from it, for reading on a web page.
"""

import os
import pathlib
import sys
import time

import jupytext
import nbclient
import nbformat

HERE = pathlib.Path(__file__).resolve().parent
SOURCES = sorted(HERE.glob("[0-9]*.py"))

# Before the first cell: a notebook that reaches for the network fails.
_NO_NETWORK = """
import socket

def _refuse(self, address):
    raise OSError(f"notebooks run without network, but {address} was asked for")

socket.socket.connect = socket.socket.connect_ex = _refuse
"""

# A slider needs a kernel: its dead copy on a web page says nothing.
_WIDGET = "application/vnd.jupyter.widget-view+json"


def read(source: pathlib.Path) -> nbformat.NotebookNode:
    """Return the notebook of a source, without outputs."""
    notebook = jupytext.read(source)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # not random: running again changes outputs only
    return notebook


def execute(source: pathlib.Path, *, timeout: int = 600) -> nbformat.NotebookNode:
    """Run a source in a clean kernel without network; the first failing cell raises."""
    notebook = read(source)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(_NO_NETWORK))
    # The checkout that holds the notebook is what it runs on.
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    client = nbclient.NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(HERE)}},
    )
    client.execute(env=environment)
    del notebook.cells[0]
    for count, cell in enumerate((c for c in notebook.cells if "outputs" in c), 1):
        cell.outputs = _merged(cell.outputs)
        cell.execution_count = count
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
    notebook.metadata.pop("widgets", None)
    return notebook


def _merged(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Leave out widgets, and join what a stream printed in pieces."""
    merged: list[nbformat.NotebookNode] = []
    for output in outputs:
        if _WIDGET in output.get("data", {}):
            continue
        last = merged[-1] if merged else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            last["text"] += output.text
        else:
            merged.append(output)
    return merged


def main(prefixes: list[str]) -> None:
    """Write the notebooks whose names begin with one of `prefixes`; all without any."""
    for source in SOURCES:
        if prefixes and not source.name.startswith(tuple(prefixes)):
            continue
        start = time.monotonic()
        notebook = execute(source)
        nbformat.write(notebook, source.with_suffix(".ipynb"))
        print(f"{source.stem}: {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
