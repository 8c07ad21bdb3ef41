"""What an evaluation tells on the way."""

import io

import jax
import pytest
import rich.console
import rich.text

import jaxrobust as jr
from jaxrobust._core import progress
from jaxrobust.evaluation import _progress

X = jax.random.uniform(jax.random.key(0), (20, 3))
Y = X.argmax(-1)
PARTS = jr.WorstOf((jr.FGSM(), jr.FGSM(loss=jr.losses.margin)))


def run(**options):
    return jr.evaluate(
        lambda x: x,
        X,
        Y,
        attack=PARTS,
        threat=jr.Linf(0.1),
        **options,
    )


def test_a_file_gets_a_line_for_each_attack(capfd):
    """Name, accuracy so far, examples left and seconds, on stderr; stdout is the user's."""
    report = run()
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert [line.split(": ")[0] for line in lines] == ["FGSM()", "FGSM(loss=margin)"]
    left = int(report.is_robust.sum())
    assert (
        f"{100 * left / 20:.2f}% robust so far, {left} of 20 examples left" in lines[1]
    )
    assert lines[1].endswith(" s")


def test_nothing_is_said_without_progress(capfd):
    """`progress=False` is silent everywhere."""
    run(progress=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name", ["Restarts(PGD(num_steps=40, step_size=0.01), 10)", "[0]"]
)
def test_bars_at_80_columns(monkeypatch, name):
    """Every bar has its name, and what is over is full."""
    file = io.StringIO()
    terminal = rich.console.Console(file=file, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "Console", lambda **_: terminal)
    with _progress.ProgressBar(is_shown=True) as bar:
        bar.stage(name, 98)  # an attack that is not queued never updates its bar
        bar.end_stage(49, 98)
    lines = rich.text.Text.from_ansi(file.getvalue()).plain.splitlines()
    last = [line for line in lines if "98/98" in line][-1]
    assert name[:20] in last
    assert "50.00%" in last and "-:--:--" not in last
    assert len(last.rstrip()) <= 80
