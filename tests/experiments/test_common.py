"""What the experiments share: the command line, messages, tables."""

import inspect
import io
import os
import sys
import time

import jax
import numpy as np
import pytest
import rich.console
import tyro

import jaxrobust as jr
from experiments import (
    _common,
    _recipes,
    attack,
    evaluate,
    linear_mnist,
    mnist_fgsm,
    published_weights,
    robustness_table,
    table,
)

pytestmark = pytest.mark.thin

COMMANDS = (attack, evaluate, linear_mnist, mnist_fgsm, published_weights)


@pytest.mark.parametrize(
    "text, value", [("8/255", 8 / 255), ("0.3", 0.3), ("1e-2", 0.01)]
)
def test_radii_as_the_papers_write_them(text, value):
    assert tyro.cli(attack.Config, args=["checkpoint", "--eps", text]).eps == value


def test_compiled_programs_are_kept(monkeypatch, tmp_path):
    """In the user's cache, unless the environment says where, or nowhere."""
    seen = {}
    monkeypatch.setattr(
        jax.config, "update", lambda name, value: seen.update({name: value})
    )
    monkeypatch.setattr(
        type(jax.config), "jax_compilation_cache_dir", None, raising=False
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    _common.keep_compiled()
    assert not seen
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    _common.keep_compiled()
    path = seen["jax_compilation_cache_dir"]
    assert path.startswith(str(tmp_path / "jaxrobust" / "compiled"))


@pytest.mark.parametrize("module", [linear_mnist, mnist_fgsm])
def test_radii_of_every_experiment(module):
    assert tyro.cli(module.Config, args=["--eps", "8/255"]).eps == 8 / 255


def test_a_radius_that_is_no_number(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(attack.Config, args=["checkpoint", "--eps", "large"])
    assert "large" in capsys.readouterr().err


@pytest.mark.parametrize("module", [*COMMANDS, robustness_table])
def test_usage_is_what_one_types(module, capsys):
    """Not the path of a file of this machine."""
    name = module.__name__.removeprefix("experiments.")
    with pytest.raises(SystemExit):
        if module is robustness_table:
            robustness_table.parse(["--help"])
        else:
            _common.parse(module.Config, name, module.__doc__, args=["--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: python -m experiments.{name} [-h]")
    assert "--formats" in shown and "--dpi" in shown
    source = inspect.getsource(module)
    assert f'_common.parse(Config, "{name}", __doc__' in source


@pytest.fixture
def no_exit(monkeypatch):
    """A command ends with `os._exit`, which would end the tests too."""
    monkeypatch.setattr(os, "_exit", sys.exit)


def test_ctrl_c(capsys, monkeypatch, no_exit):
    """What to type next, and the exit code of an interrupt."""
    monkeypatch.setattr(sys, "argv", ["x", "--eps", "0.1", "--restart", "--out", "a b"])
    for resumes, text in ((True, "goes on where it stopped"), (False, "begins again")):
        with (
            pytest.raises(SystemExit) as stop,
            _common.friendly_errors(resumes=resumes),
        ):
            raise KeyboardInterrupt
        assert stop.value.code == 130
        shown = capsys.readouterr().err
        assert text in shown
        assert shown.endswith(" --eps 0.1 --out 'a b'\n")  # not --restart once more


def test_ctrl_c_in_a_callback_is_not_lost(no_exit, ctrl_c):
    """Python prints what a finaliser raises and goes on; JAX has such callbacks."""

    class Callback:
        def __del__(self):
            raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop, _common.friendly_errors():
        callback = Callback()
        del callback
        time.sleep(5)
    assert stop.value.code == 130


@pytest.mark.parametrize(
    ("error", "needed"),
    [
        (
            ValueError("Choose another output directory (out), or resume=False."),
            "--out",
        ),
        (FloatingPointError("training diverged: ... with resume=False."), "--restart"),
    ],
)
def test_advice_is_given_in_options(error, needed, capsys):
    """The library speaks of its arguments, a command of what can be typed."""
    with pytest.raises(SystemExit) as stop, _common.friendly_errors():
        raise error
    shown = capsys.readouterr().err
    assert stop.value.code == 2
    assert needed in shown and "resume=False" not in shown and "(out)" not in shown


def test_out_names_data_set_and_radius():
    """Two runs of other problems do not share a directory."""
    parse = robustness_table.parse
    names = [
        parse(arguments).directory.as_posix()
        for arguments in ([], ["--eps", "0.1"], ["--dataset", "mnist"])
    ]
    root = "out/robustness_table"
    assert names == [f"{root}/digits_0.2", f"{root}/digits_0.1", f"{root}/mnist_0.3"]
    assert parse(["--out", "here"]).directory.as_posix() == "here"


@pytest.mark.parametrize(
    ("name", "step"),
    [("digits", 0.02), ("mnist", 0.01), ("fashion_mnist", 0.01), ("cifar10", 2 / 255)],
)
def test_the_step_follows_eps(name, step):
    """At the recipe's radius the step of the published tables, at others its share."""
    recipe = _recipes.RECIPES[name]
    assert np.float32(recipe.attack.step_size) == np.float32(step)
    tenth = robustness_table.parse(["--dataset", name, "--eps", str(recipe.eps / 10)])
    assert tenth.attack.step_size == pytest.approx(step / 10)
    given = robustness_table.parse(["--dataset", name, "--test-step-size", "0.005"])
    assert given.attack.step_size == 0.005
    assert "e-" not in repr(recipe.attack) and len(repr(recipe.attack)) < 45


def rendered(monkeypatch, function, *arguments, module=_common):
    """Return the lines that are printed at 80 columns."""
    file = io.StringIO()
    console = rich.console.Console(file=file, width=80)
    monkeypatch.setattr(module, "console", console)
    function(*arguments)
    return file.getvalue()


def test_tables_do_not_break_cells_at_80_columns(monkeypatch):
    """The widest figures that there are, whole and on one line."""
    cell = {"accuracy": 1.0, "low": 0.98, "high": 1.0}
    columns = {
        training: {
            "cells": dict.fromkeys(table.ROWS, cell),
            "gaps": dict.fromkeys(
                ("clean_train_error", "clean_gap", "pgd_train_error", "pgd_gap"), 1.0
            ),
        }
        for training in table.COLUMNS
    }
    result = {
        "table": columns,
        "statements": table.check_statements(columns),
        "config": {"dataset": "fashion_mnist", "eps": 8 / 255},
        "num_test": 10_000,
        "attacks": {"PGD": "PGD()"},
    }
    shown = rendered(monkeypatch, table.print_result, result, module=table)
    assert shown.count("100.0 [98.0, 100.0]") == 9
    assert "eps = 8/255" in shown
    runs = [
        {"training": name, **dict.fromkeys(figures, 12.345)}
        for name in ("standard", "robust")
        for figures in [("clean", "exact", "clean_gap", "exact_gap")] * 2
    ]
    names = ("dimension", "shift", "random_shift", "margin", "exact")
    result = {
        "runs": runs,
        "config": {"dataset": "fashion_mnist", "eps": 0.2, "num_seeds": 2},
        "num_test": 10_000,
        "growth": [dict.fromkeys(names, 100)],
    }
    shown = rendered(monkeypatch, linear_mnist._print, result)
    assert shown.count("12.35 +- 0.00") + shown.count("12.34 +- 0.00") == 4
    summary = {
        figure: {"mean": 12.345, "std": 10.0}
        for figure in ("clean", "fgsm", "clean_gap", "fgsm_gap")
    }
    result["summary"] = {"standard": summary, "fgsm": summary}
    shown += rendered(monkeypatch, mnist_fgsm.print_table, result)
    assert shown.count("+- 10.00") == 4
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.fixture(scope="module")
def own_model(tmp_path_factory):
    """A checkpoint that does not say what it was trained on."""
    path = tmp_path_factory.mktemp("own") / "best"
    spec = {"name": "mlp", "input_shape": [6, 5, 1], "num_classes": 3, "seed": 0}
    model = jr.models.create(**spec | {"input_shape": (6, 5, 1)})
    jr.training.save_checkpoint(path, model, metadata={"model": spec})
    return path


def run(module, *words):
    return module.main(_common.parse(module.Config, "name", None, args=[*words]))


@pytest.mark.slow
@pytest.mark.parametrize("module", [attack, evaluate])
def test_a_model_of_own_data(module, own_model, tmp_path):
    """The message says what to do, and doing it works."""
    words = [str(own_model), "--eps", "0.1", "--attack", "fgsm", "--out", str(tmp_path)]
    with pytest.raises(ValueError, match=r"does not say.*--data FILE.npz.*--dataset"):
        run(module, *words)
    with pytest.raises(ValueError, match=r"--dataset 'mine', which is none of digits"):
        run(module, *words, "--dataset", "mine")
    x = np.asarray(jax.random.uniform(jax.random.key(0), (9, 6, 5, 1)))
    np.savez(tmp_path / "mine.npz", x=x, y=np.arange(9) % 3)
    report = run(
        module, *words, "--data", str(tmp_path / "mine.npz"), "--formats", "svg"
    )
    assert report.x_adv.shape == x.shape
    assert (tmp_path / "confusion.svg").exists()
    assert not list(tmp_path.glob("*.png"))


def test_other_files_are_refused(own_model, tmp_path):
    """Missing, no archive, other names, pixels."""
    words = [str(own_model), "--eps", "0.1", "--out", str(tmp_path), "--data"]
    file = tmp_path / "own.npz"
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        run(attack, *words, str(file))
    file.write_text("x, y")
    with pytest.raises(ValueError, match=r"cannot be read.*numpy.savez"):
        run(attack, *words, str(file))
    np.savez(file, images=np.zeros((2, 6, 5, 1)), y=np.zeros(2, int))
    with pytest.raises(ValueError, match=r"holds \['images', 'y'\]; needed"):
        run(attack, *words, str(file))
    np.savez(file, x=np.zeros((2, 6, 5, 1), np.uint8), y=np.zeros(2, int))
    with pytest.raises(ValueError, match=r"x is uint8; floats"):
        run(attack, *words, str(file))
