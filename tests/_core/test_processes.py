"""What several processes agree on, and that one pays nothing for it."""

import subprocess
import sys

import pytest

from jaxrobust._core import processes
from tests import two_processes
from tests.evaluation import killed_evaluation
from tests.two_processes import ROOT

SCRIPT = """
import pathlib
import pytest
from jaxrobust._core import processes
from tests.evaluation.killed_evaluation import run as evaluate
from tests.training.killed_run import run as train

tmp_path = pathlib.Path(arguments[0])
own = tmp_path / str(number)
own.mkdir()

assert processes.decide(number == 0) and not processes.decide(number == 1)
assert processes.together(lambda: number, "counting") == number

# An error on one process is an error on both, in a call that another can follow.
def fail():
    if number == 1:
        raise KeyError("planted")
with pytest.raises((KeyError, RuntimeError)[1 - number], match="planted|process 1"):
    processes.together(fail, "planting")
processes.first(lambda: (tmp_path / f"from{number}").touch(), "touching")
assert (tmp_path / "from0").exists() and not (tmp_path / "from1").exists()

# The same file on both, or none on both.
processes.check_same(tmp_path / "from0")
processes.check_same(own / "absent")
(own / "file").write_text("the same")
processes.check_same(own / "file")
(own / "file").write_text(str(number))
processes.first((own / "seen by one").touch, "touching")
for name in ("file", "seen by one"):
    with pytest.raises(ValueError, match=r"\\[1\\] do not see.*file system"):
        processes.check_same(own / name)
processes.check_shared(tmp_path / "new")

# Before any work, on both: paths that differ, a path on one, a mesh that leaves one out.
for call in (evaluate, lambda path=None, **options: train(1, path, **options)):
    with pytest.raises(ValueError, match=r"\\[1\\] do not see.*file system"):
        call(own / "state", mesh=mesh)
    with pytest.raises(ValueError, match="on some processes only"):
        call(own / "state" if number == 0 else None, mesh=mesh)
    for local in (None, jax.make_mesh((1,), "b", devices=jax.local_devices())):
        with pytest.raises(ValueError, match="a mesh over the devices of all"):
            call(own / "state", mesh=local)
assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]
assert evaluate(mesh=None).broken_by.any()  # each by itself, without a file
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Decisions of process 0; errors on both where one has one, and no waiting."""
    two_processes.run(SCRIPT, tmp_path)


@pytest.mark.slow
def test_one_process_pays_nothing(tmp_path, monkeypatch):
    """Neither a collective call nor the import that it takes."""
    monkeypatch.setattr(processes, "_gather", None)
    killed_evaluation.run(tmp_path / "state.npz")
    script = (
        "import sys, jaxrobust; from tests.evaluation.killed_evaluation import run; "
        f"run({str(tmp_path / 'state.npz')!r}); "
        "assert 'jax.experimental.multihost_utils' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_errors_pass_through_on_one_process():
    """As without the machinery."""

    def fail():
        raise KeyError("planted")

    for call in (processes.together, processes.first):
        with pytest.raises(KeyError, match="planted"):
            call(fail, "planting")
