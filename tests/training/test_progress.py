"""What a run tells while it works, and how it ends when it is stopped or breaks."""

import io
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console

from jaxrobust import training
from jaxrobust._core import progress as display
from jaxrobust.training import interrupts, progress, storage
from jaxrobust.training.run import RunDirectory
from tests.training.killed_run import KEY, attack, cross_entropy, data

X, Y = data(16)


def objective(trained_fn, attacked_fn, x, y, *, key, step):
    logits = trained_fn(x)
    return cross_entropy(logits, y), {"accuracy": (logits.argmax(-1) == y).mean()}


def fit(num_epochs=2, optimizer=None, objective=objective, **options):
    model = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    options = dict(batch_size=8, key=KEY) | options
    optimizer = optimizer or optax.sgd(0.1)
    return training.fit(
        model, objective, optimizer, X, Y, num_epochs=num_epochs, **options
    )


LINE = (
    r"epoch {}/2  loss \d\.\d{{4}}  accuracy \d\.\d{{4}}  val_clean \d\.\d{{4}}  "
    r"val_robust \d\.\d{{4}}  \d+\.\d s  \d:\d\d:\d\d left"
)


def test_a_line_for_each_epoch_where_there_is_no_terminal(capfd):
    fit(validation=(X, Y), validation_attack=attack, threat=0.1)
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 2
    for i, line in enumerate(lines):
        assert re.fullmatch(LINE.format(i + 1), line), line
    assert lines[-1].endswith("0:00:00 left")


def test_silence(capfd):
    fit(progress=False)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_has_a_bar_with_a_name_that_goes_and_lines_that_stay(monkeypatch):
    screen = io.StringIO()

    def terminal(**options):
        return Console(file=screen, force_terminal=True, width=80, _environ={})

    monkeypatch.setattr(display, "Console", terminal)
    fit()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert re.search(r"training +epoch 2/2", text)
    assert len(re.findall(r"epoch \d/2  loss .* left", text)) == 2
    # The bar's last picture is erased: up and clear, and nothing is drawn after it.
    assert screen.getvalue().rstrip().endswith("\x1b[2K")
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]+", text))


def stop_at(monkeypatch, number):
    """Interrupt at the n-th save, as Ctrl-C would."""
    saves, original = iter(range(number)), RunDirectory.save

    def save(self, run):
        if next(saves, None) is None:
            raise KeyboardInterrupt
        original(self, run)

    monkeypatch.setattr(RunDirectory, "save", save)


def test_an_interrupt_says_how_to_go_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        with pytest.raises(KeyboardInterrupt) as interrupt:
            fit(3, out=tmp_path)
    (note,) = interrupt.value.__notes__
    assert "interrupted after 4 of 6 steps" in note
    assert f"step 2 in {tmp_path} is complete: the same call goes on" in note
    resumed, whole = fit(3, out=tmp_path), fit(3)
    for a, b in zip(resumed.history, whole.history, strict=True):
        assert a["train_loss"] == b["train_loss"]


def test_an_interrupt_without_a_checkpoint(tmp_path, monkeypatch):
    # What a killed process has left of writing the metrics goes, and nothing else.
    left, others = tmp_path / "metrics.jsonl.0123abcd.tmp", tmp_path / "notes.tmp"
    left.touch(), others.touch()
    stop_at(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        fit(out=tmp_path)
    assert "the same call begins again" in interrupt.value.__notes__[0]
    assert not left.exists() and others.exists()


def test_an_interrupt_without_out(monkeypatch):
    def end_epoch(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.ProgressBar, "end_epoch", end_epoch)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        fit()
    assert "with out=... a run can be continued" in interrupt.value.__notes__[0]


def test_an_interrupt_while_a_checkpoint_is_written(tmp_path, monkeypatch, ctrl_c):
    """It waits for the end of the write: the checkpoint of this step is there."""
    original = storage.write

    def write(path, *args):
        signal.raise_signal(signal.SIGINT)
        original(path, *args)

    monkeypatch.setattr(storage, "write", write)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        fit(checkpoint_every=1, out=tmp_path)
    assert "checkpoint of step 1 " in interrupt.value.__notes__[0]
    assert storage.read_info(tmp_path / "last")["run"]["step"] == 1
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_interrupt_does_not_wait(ctrl_c):
    with pytest.raises(KeyboardInterrupt), interrupts.uninterrupted():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")


def overflowing(step):
    """An optimiser whose update number `step` is too large for float32."""
    return optax.sgd(lambda count: jnp.where(count == step, 3e38, 1e-3))


def steep(trained_fn, attacked_fn, x, y, *, key, step):
    return 100 * trained_fn(x).sum(), {}


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_last_update_overflows(tmp_path, ema_decay):
    """Loss and gradient of every step are finite, and the weights are not."""
    options = dict(objective=steep, ema_decay=ema_decay)
    with pytest.raises(FloatingPointError, match=r"after step 3, \d arrays") as error:
        fit(optimizer=overflowing(3), **options)
    assert "params.bias" in str(error.value)
    fine = fit(1, out=tmp_path, optimizer=overflowing(3), **options)
    with pytest.raises(FloatingPointError):
        fit(2, out=tmp_path, optimizer=overflowing(3), **options)
    assert storage.read_info(tmp_path / "last")["run"]["step"] == 2
    for name in ("last", "best"):
        loaded, _ = training.load_checkpoint(tmp_path / name, fine.last)
        np.testing.assert_array_equal(loaded.kernel[...], fine.last.kernel[...])


def test_a_checkpoint_within_an_epoch_is_checked_too(tmp_path):
    with pytest.raises(FloatingPointError, match="after step 0"):
        fit(optimizer=overflowing(0), objective=steep, out=tmp_path, checkpoint_every=1)
    assert not storage.exists(tmp_path / "last")


def test_infinite_constants_of_a_model_are_no_overflow():
    """A mask of -inf was there before."""

    class Masked(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
            self.mask = nnx.Variable(jnp.array([[0.0, 0.0, 0.0], [0, 0, -jnp.inf]]))

        def __call__(self, x):
            return self.linear(x) + self.mask[...][:1]

    result = training.fit(
        Masked(), objective, optax.sgd(0.1), X, Y,
        num_epochs=1, batch_size=8, key=jax.random.key(0), progress=False,
    )  # fmt: skip
    assert np.isfinite(result.history[0]["train_loss"])
