"""The experiments as a user runs them, at toy size; and the messages of mistakes."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments import attack, linear_mnist, mnist_fgsm, robustness_table

QUICK = ["--num-train", "300", "--num-test", "40", "--num-epochs", "2"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A robustness table of models that have hardly been trained."""
    out = tmp_path_factory.mktemp("table")
    options = [
        *QUICK,
        "--num-validation",
        "100",
        "--train-steps",
        "2",
        "--test-steps",
        "3",
    ]
    options += ["--test-restarts", "2", "--num-gap", "20", "--out", str(out)]
    return robustness_table.main(robustness_table.parse(options)), out


@pytest.mark.slow
def test_table_writes_its_results(table):
    """Every file that the issue of the experiment names is there and holds the run."""
    result, out = table
    saved = json.loads((out / "table.json").read_text())
    assert saved["table"] == json.loads(json.dumps(result["table"]))
    assert saved["num_test"] == 40
    assert saved["config"]["recipe"]["num_epochs"] == 2
    assert len(saved["statements"]) == 4
    assert {"commit", "date", "device", "config", "seconds"} <= saved.keys()
    for name in ("table.png", "examples.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    for training in ("standard", "FGSM", "PGD"):
        assert (out / training / "best").is_dir()
        assert (out / training / "last").is_dir()


@pytest.mark.slow
def test_table_agrees_with_its_saved_reports(table):
    """The cell under PGD is the accuracy recomputed from the saved predictions."""
    result, out = table
    for training in ("standard", "FGSM", "PGD"):
        saved = np.load(out / training / "report_PGD" / "report.npz")
        accuracy = float((saved["predicted_adv"] == saved["y"]).mean())
        assert result["table"][training]["cells"]["PGD"]["accuracy"] == accuracy


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--attack", "fgsm"],
        ["--threat", "l2", "--num-steps", "3", "--num-restarts", "2"],
        ["--threat", "l1", "--num-steps", "3", "--loss", "dlr", "--momentum", "0.9"],
        ["--num-steps", "3", "--target", "7", "--unbounded"],
    ],
)
def test_attack_command(table, tmp_path, options):
    """A checkpoint of the table is attacked as the command line says."""
    import tyro

    _, trained = table
    arguments = [str(trained / "PGD" / "best"), "--eps", "0.1", "--num-test", "20"]
    arguments += ["--out", str(tmp_path), *options]
    report = attack.main(tyro.cli(attack.Config, args=arguments))
    assert report.distance.max() <= 0.1 * (1 + 1e-5)
    saved = np.load(tmp_path / "report.npz")["x_adv"]
    np.testing.assert_array_equal(saved, report.x_adv)
    assert (tmp_path / "adversarial.png").stat().st_size > 1000


@pytest.mark.slow
def test_fgsm_experiment_summarises_its_seeds(tmp_path):
    """Mean and spread are those of the runs, which differ by seed."""
    recipe = mnist_fgsm.dataclasses.replace(
        mnist_fgsm.RECIPE, num_epochs=1, batch_size=50
    )
    result = mnist_fgsm.main(
        mnist_fgsm.Config(
            dataset="digits",
            out=tmp_path,
            num_seeds=2,
            num_train=200,
            num_test=50,
            recipe=recipe,
        )
    )
    errors = [run["fgsm"] for run in result["runs"] if run["training"] == "standard"]
    assert len(errors) == 2
    summary = result["summary"]["standard"]["fgsm"]
    assert summary["mean"] == pytest.approx(np.mean(errors))
    assert summary["std"] == pytest.approx(np.std(errors, ddof=1))


@pytest.mark.slow
def test_linear_experiment_shows_the_lectures_pattern(tmp_path):
    """Standard training falls to the exact attack, robust training holds: on digits."""
    config = linear_mnist.Config(dataset="digits", out=tmp_path, num_seeds=1, eps=0.3)
    runs = {run["training"]: run for run in linear_mnist.main(config)["runs"]}
    assert runs["standard"]["clean"] < 5
    assert runs["standard"]["exact"] > runs["robust"]["exact"] + 10
    assert (tmp_path / "growth.png").stat().st_size > 1000


def run_command(*arguments: str) -> subprocess.CompletedProcess:
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=300
    )


def test_unwritable_out_is_said_before_any_work(tmp_path):
    """A path below a file cannot be made, by root neither."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = run_command("experiments.robustness_table", "--out", str(blocked / "out"))
    assert done.returncode == 2
    assert "Choose another directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_checkpoint_is_an_error_message(tmp_path):
    """A wrong path ends with advice, not with a traceback."""
    missing = str(tmp_path / "nothing")
    out = str(tmp_path / "out")
    done = run_command("experiments.attack", missing, "--eps", "0.1", "--out", out)
    assert done.returncode == 2
    assert missing in done.stderr
    assert "Traceback" not in done.stderr


def test_help_shows_the_recipe_of_the_data_set():
    """The defaults shown are those that the run would use."""
    done = run_command("experiments.robustness_table", "--dataset", "cifar10", "--help")
    assert done.returncode == 0
    assert "preact_resnet18" in done.stdout
