"""State files: a killed evaluation resumes and gives what it would have given."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrobust as jr
from jaxrobust._core import lock
from jaxrobust.evaluation.queue import _saved, _slots
from tests.evaluation import killed_evaluation
from tests.evaluation.killed_evaluation import run
from tests.problems import MODEL, THREAT, X, Y

pytestmark = pytest.mark.thin

ROOT = pathlib.Path(__file__).parents[3]


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


def quantised(x):
    return jnp.round(8 * x) / 8


def scaled_gradient(scale):
    """The same values with another derivative rule."""

    @jax.custom_vjp
    def same(x):
        return x

    same.defvjp(lambda x: (x, None), lambda _, ct: (scale * ct,))
    return same


def behind(function):
    return lambda x: MODEL(function(x))


def pgd(**options):
    return jr.PGD(num_steps=8, **options)


def scaled_loss(scale):
    def loss(logits, y):
        return scale * jr.losses.cross_entropy(logits, y)

    return loss


def falling(power):
    def schedule(step):
        return (1 - step / 8) ** power

    return schedule


def plain_attack(scale):
    def attack(logits_fn, x, y, *, threat, key=None):
        return threat.project(x + scale * threat.eps, x)

    return attack


def convolution(x):
    images = x.reshape(-1, 1, 2, 3)
    kernel = jnp.arange(18.0).reshape(3, 1, 2, 3) % 5 - 2
    return jax.lax.conv(images, kernel, (1, 1), "VALID")[:, :, 0, 0]


@pytest.mark.parametrize(
    "one, other",
    [
        (dict(model=behind(quantised)), dict(model=behind(jr.bpda(quantised)))),
        (
            dict(model=behind(scaled_gradient(1))),
            dict(model=behind(scaled_gradient(-1))),
        ),
        (dict(model=behind(lambda x: x)), dict(model=behind(jax.lax.stop_gradient))),
        (dict(attack=pgd(loss=scaled_loss(1))), dict(attack=pgd(loss=scaled_loss(-1)))),
        (
            dict(attack=pgd(optimizer=optax.adam(0.1))),
            dict(attack=pgd(optimizer=optax.adam(0.2))),
        ),
        (
            dict(attack=pgd(step_schedule=falling(1))),
            dict(attack=pgd(step_schedule=falling(2))),
        ),
        (dict(attack=plain_attack(1)), dict(attack=plain_attack(-1))),
        (
            dict(attack=jr.WorstOf((pgd(), plain_attack(1)))),
            dict(attack=jr.WorstOf((pgd(), plain_attack(-1)))),
        ),
        (dict(threat=jr.Linf(0.1)), dict(threat=jr.Linf(0.1, bounds=(0.0, 1.01)))),
    ],
    ids="bpda rule stop_gradient loss optimizer schedule plain part bounds".split(),
)
def test_what_neither_logits_nor_texts_show(one, other):
    """The programs tell them apart; the same settings, made anew, are the same."""
    assert digest_of(**one) == digest_of(**one) != digest_of(**other)


@pytest.mark.parametrize(
    "setting",
    [
        ("jax_enable_x64", True),
        ("jax_default_matmul_precision", "bfloat16"),
        ("jax_threefry_partitionable", False),
    ],
    ids=lambda setting: setting[0],
)
def test_settings_of_jax(setting):
    """They change types, products and draws."""
    name, value = setting
    before = digest_of()
    old = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        assert digest_of() != before
    finally:
        jax.config.update(name, old)


def test_plain_convolutions_are_another_program():
    """Their gradients are rounded differently."""
    model = jr.plain_convolutions(convolution)
    assert digest_of(model=convolution) != digest_of(model=model)


def digest_of(model=MODEL, **changes):
    """Return the fingerprint of an evaluation, which is not run."""
    options = dict(attack=pgd(), threat=THREAT, key=killed_evaluation.KEY) | changes
    with pytest.MonkeyPatch.context() as context:
        files = []
        enter = lambda file: files.append(file) or 1 / 0  # noqa: E731
        context.setattr(_saved.StateFile, "__enter__", enter)
        with pytest.raises(ZeroDivisionError):
            jr.evaluate(model, X, Y, state_file="unused", batch_size=8, **options)
    return files[0]._fingerprint


@pytest.mark.slow
def test_the_same_model_with_another_gradient(tmp_path, monkeypatch):
    """Gone on with, its findings would be those of the weaker attack."""
    file = tmp_path / "state.npz"
    options = dict(attack=pgd(), threat=jr.Linf(0.2), key=killed_evaluation.KEY)
    options |= dict(batch_size=8, state_file=file, save_every=0.0)
    with monkeypatch.context() as context, pytest.raises(Stop):
        interrupt_after(context, 3)
        jr.evaluate(behind(quantised), X, Y, **options)
    with pytest.raises(ValueError, match="another model, gradient"):
        jr.evaluate(behind(jr.bpda(quantised)), X, Y, **options)
    resumed = jr.evaluate(behind(quantised), X, Y, **options)
    through = jr.evaluate(behind(jr.bpda(quantised)), X, Y, **options)
    assert resumed.robust_accuracy > through.robust_accuracy


def test_a_function_of_the_host(tmp_path):
    """Nobody can say what it computes: refused before any work."""

    def model(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return MODEL(jax.pure_callback(np.array, shape, x, vmap_method="sequential"))

    options = dict(attack=jr.Square(num_queries=5), threat=THREAT, batch_size=8)
    options |= dict(key=killed_evaluation.KEY)
    with pytest.raises(ValueError, match=r"calls the host.*leave state_file out"):
        jr.evaluate(model, X, Y, state_file=tmp_path / "state.npz", **options)
    assert not list(tmp_path.iterdir())
    jr.evaluate(model, X, Y, **options)


DIGESTS = """
import jax, jax.numpy as jnp
from flax import nnx
from tests.evaluation.queue.test_saved import *
layer = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
models = MODEL, behind(jr.bpda(quantised)), jr.models.logits_fn(layer), layer
adam = pgd(optimizer=optax.adam(optax.cosine_decay_schedule(0.1, 8)))
result = [digest_of(model=m) for m in models]
result += [digest_of(attack=a) for a in (adam, jr.autoattack(), plain_attack(1))]
"""


@pytest.mark.slow
def test_another_process_makes_the_same_digests():
    """Addresses, hashes and the order of sets are others there."""
    here = {}
    exec(DIGESTS, here)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONHASHSEED": "7"}
    options = dict(cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE)
    command = [
        sys.executable,
        "-c",
        "import tests.conftest\n" + DIGESTS + "print(result)",
    ]
    assert subprocess.run(command, **options).stdout.decode().strip() == str(
        here["result"]
    )


def write(file, kind):
    if kind == "directory":
        file.mkdir()
    elif kind == "array":
        with file.open("wb") as stream:
            np.save(stream, np.ones(3))
    elif isinstance(kind, dict):
        with file.open("wb") as stream:
            np.savez(stream, **kind)
    else:
        file.write_bytes(kind)


OLD = {"format": "jaxrobust-evaluation-1"}
NOW = {"format": _saved._FORMAT}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a state file"),
        (b"not a state file", "not a state file"),
        (b"PK\x03\x04 broken", "not a state file"),
        ("array", "a single array"),
        ("directory", "not a state file"),
        ({}, "not a state file"),
        ({"x": np.ones(3)}, "not a state file"),
        ({"meta": np.array("[]")}, "not a state file"),
        ({"meta": np.array("{")}, "not a state file"),
        ({"meta": np.array("{}")}, "format None"),
        ({"meta": np.array(json.dumps(OLD))}, "format 'jaxrobust-evaluation-1'"),
        ({"meta": np.array(json.dumps(NOW))}, r"\['alone', 'counts', 'fingerprint', "),
    ],
)
def test_a_foreign_file(tmp_path, content, message):
    """A file that is none is refused, not overwritten."""
    file = tmp_path / "state.npz"
    write(file, content)
    before = file.is_dir() or file.read_bytes()
    state = _saved.StateFile(file, "", 0.0)
    with pytest.raises(ValueError, match=f"{message}.*remove it"):
        state.load(None, [])
    assert (file.is_dir() or file.read_bytes()) == before


def test_a_single_array_as_state_file(tmp_path):
    """The whole way: refused, and nothing else is left there."""
    write(tmp_path / "state.npy", "array")
    with pytest.raises(ValueError, match=r"not a state file.*remove it"):
        run(tmp_path / "state.npy")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_one_evaluation_at_a_time(tmp_path, monkeypatch):
    """The second is told of the first; a lock that nobody holds is taken over."""
    file = tmp_path / "state.npz"
    other = lock.Lock(file)
    other.acquire()
    with pytest.raises(RuntimeError, match=rf"process {os.getpid()} on.*another file"):
        run(file)
    other.release()
    # Of a process that was killed.
    file.with_name("state.npz.lock").write_text("process 1 on nowhere")
    run(file)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["no locks", "not on this file system"])
def test_without_locks(tmp_path, monkeypatch, kind):
    """The evaluation is worth more than the lock."""

    def flock(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    if kind == "no locks":
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(lock.fcntl, "flock", flock)
    run(tmp_path / "state.npz")
    assert not list(tmp_path.iterdir())


def test_a_full_disk(tmp_path, monkeypatch):
    """What was saved before stays, the evaluation goes on and tries again."""
    file, seen = tmp_path / "state.npz", []
    savez, numbers = np.savez, iter(range(1000))

    def fills_up(stream, **arrays):
        if 3 <= next(numbers) < 6:
            stream.write(b"the beginning")
            seen.append(file.read_bytes())
            raise OSError(errno.ENOSPC, "No space left on device")
        savez(stream, **arrays)

    monkeypatch.setattr(np, "savez", fills_up)
    with monkeypatch.context() as context, pytest.raises(Stop):
        interrupt_after(context, 5)
        with pytest.warns(UserWarning, match="No space left.*tries again") as warned:
            run(file)
    assert {w.filename for w in warned} == {killed_evaluation.__file__}
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]
    assert len(seen) == 2 and seen[0] == seen[1] == file.read_bytes()
    with pytest.warns(UserWarning, match="No space left"):
        resumed = run(file)
    assert len(seen) == 3 and next(numbers) > 10
    assert_same(resumed, run())


def test_a_disk_that_stays_full(tmp_path, monkeypatch):
    """The report is returned all the same."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    monkeypatch.setattr(pathlib.Path, "unlink", full)
    with pytest.warns(UserWarning, match="could not be"):
        assert_same(run(tmp_path / "state.npz"), run())


def test_saving_is_rare_by_default(tmp_path, monkeypatch):
    """Not every round is worth a file."""
    writes = []
    monkeypatch.setattr(_saved, "_to_arrays", lambda *a: writes.append(1) or {})
    run(tmp_path / "state.npz", save_every=3600.0)
    assert not writes
