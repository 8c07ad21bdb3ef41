"""State files: a killed evaluation resumes and gives what it would have given."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust.evaluation import _saved, _slots
from tests.evaluation import killed_evaluation
from tests.evaluation.killed_evaluation import run
from tests.evaluation.test_slots import MODEL, THREAT, X, Y

ROOT = pathlib.Path(__file__).parents[2]


class Stop(Exception):
    """Ends a run from inside, at a chosen round."""


def interrupt_after(monkeypatch, num_rounds: int) -> None:
    advance, count = _slots._advance, iter(range(num_rounds))

    def limited(*args, **kwargs):
        if next(count, None) is None:
            raise Stop
        return advance(*args, **kwargs)

    monkeypatch.setattr(_slots, "_advance", limited)


def assert_same(a, b):
    """Equal to the last bit, costs included."""
    np.testing.assert_array_equal(a.x_adv, b.x_adv)
    np.testing.assert_array_equal(a.broken_by, b.broken_by)
    np.testing.assert_array_equal(a.loss_adv, b.loss_adv)
    assert a.cost == b.cost


@pytest.mark.parametrize("num_rounds", [1, 10, 20, 45])
@pytest.mark.parametrize("individually", [False, True])
def test_resumed_anywhere(tmp_path, monkeypatch, num_rounds, individually):
    """Bit for bit the uninterrupted run, in the first stage and in the second."""
    file, options = tmp_path / "state.npz", {"individually": individually}
    with monkeypatch.context() as context, pytest.raises(Stop):
        interrupt_after(context, num_rounds)
        run(file, **options)
    assert file.exists() == (num_rounds > 0)
    assert_same(run(file, **options), run(**options))
    assert not file.exists()  # an evaluation that has ended leaves nothing behind


@pytest.mark.slow
def test_killed_for_good(tmp_path):
    """SIGKILL in the middle of a real process, then the same command again."""
    command = [sys.executable, "-m", "tests.evaluation.killed_evaluation"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    options = dict(cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    slowly = [*command, str(tmp_path), "0.05"]
    with subprocess.Popen(slowly, **options) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "state.npz").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        time.sleep(0.5)  # some rounds later
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "result.npz").exists()
    subprocess.run([*command, str(tmp_path), "0"], check=True, **options)
    whole = run()
    with np.load(tmp_path / "result.npz") as result:
        np.testing.assert_array_equal(result["x_adv"], whole.x_adv)
        np.testing.assert_array_equal(result["broken_by"], whole.broken_by)


def saved_file(tmp_path, monkeypatch):
    file = tmp_path / "state.npz"
    with monkeypatch.context() as context, pytest.raises(Stop):
        interrupt_after(context, 5)
        run(file)
    return file


@pytest.mark.parametrize(
    "changes",
    [
        {"threat": jr.Linf(0.11)},
        {"key": jax.random.key(8)},
        {"batch_size": 4},
        {"attack": jr.Restarts(jr.PGD(num_steps=8), 2)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_state_of_another_evaluation(tmp_path, monkeypatch, changes):
    """What would mix two evaluations is refused, and the file is kept."""
    file = saved_file(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"another evaluation.*remove it"):
        run(file, **changes)
    assert file.exists()


def test_another_model(tmp_path, monkeypatch):
    """The model is recognised by its answers."""
    file = saved_file(tmp_path, monkeypatch)
    other = jax.tree.map(lambda leaf: leaf * 1.01, MODEL)
    options = dict(attack=killed_evaluation.ATTACK, threat=THREAT, batch_size=8)
    with pytest.raises(ValueError, match="another model"):
        jr.evaluate(other, X, Y, key=jax.random.key(7), state_file=file, **options)


@pytest.mark.parametrize("content", [b"", b"not a state file", b"PK\x03\x04 broken"])
def test_a_foreign_file(tmp_path, content):
    """A file that is none is refused, not overwritten."""
    file = tmp_path / "state.npz"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"not a state file.*remove it"):
        run(file)
    assert file.read_bytes() == content


def test_saving_is_rare_by_default(tmp_path, monkeypatch):
    """Not every round is worth a file."""
    writes = []
    monkeypatch.setattr(_saved, "_to_arrays", lambda *a: writes.append(1) or {})
    run(tmp_path / "state.npz", save_every=3600.0)
    assert not writes
