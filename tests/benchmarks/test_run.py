"""The benchmarks: the table, the ratio, and that ours runs without its peers."""

import importlib.util
import json

import numpy as np
import pytest

from benchmarks import documentation, gpu, peers, run, table, task, turns, weights
from benchmarks.task import OURS, Options, Problem
from benchmarks.tasks import TASKS

QUICK = Options(quick=True)


def measured(seconds, **more):
    """Return what a worker measures in one run."""
    same = {"cpu_seconds": seconds, "wall_seconds": seconds, "peak_bytes": 2**20}
    return {"seconds": seconds, "figures": {}, **same, **more}


def result_of(**times):
    """Return the result of a task whose sides took the given times."""
    sides = {
        name: turns.summary([measured(t) for t in ts]) for name, ts in times.items()
    }
    result = {"title": "T", "sides": sides, "ratios": turns.ratios(sides)}
    return result | {"targets": []}


def test_ratio_is_the_median_over_turns():
    """Turns are compared pair by pair; the first run, which compiles, does not count."""
    result = result_of(jaxrobust=[9.0, 1.0, 2.0, 1.0], peer=[9.0, 3.0, 4.0, 1.0])
    assert result["ratios"] == {"peer": {"median": 2.0, "min": 1.0, "max": 3.0}}


def test_compilation_is_what_the_first_run_took_beyond_the_median():
    """Unless the side has measured it."""
    runs = [measured(5.0), measured(1.0), measured(2.0), measured(1.5)]
    assert turns.summary(runs)["compile_seconds"] == 3.5
    assert turns.summary(runs)["seconds"] == 1.5
    own = [measured(5.0, compile_seconds=0.25) for _ in range(3)]
    assert turns.summary(own)["compile_seconds"] == 0.25


def test_counts_are_medians_of_the_later_runs():
    """A count that is not given has no line in the table."""
    runs = [measured(1.0, gradients=n) for n in (9, 4, 6, 5)]
    assert turns.summary(runs)["gradients"] == 5
    assert "gradients" not in turns.summary([measured(1.0), measured(1.0)])


def test_targets():
    """Met, missed, and not judged where there is nothing to compare with."""
    result = result_of(jaxrobust=[1.0, 1.0], slow=[1.0, 4.0], fast=[1.0, 2.0])
    assert task.at_least(2.0).is_met(result) is True
    assert task.at_least(2.1).is_met(result) is False
    assert task.at_least(4.0, "slow").is_met(result) is True
    assert task.at_least(1.0, "absent").is_met(result) is None
    assert task.at_least(1.0).is_met(result_of(jaxrobust=[1.0, 1.0])) is None
    assert task.at_most(1.0).is_met(result) is True
    assert task.at_most(0.9).is_met(result) is False


def test_agreement_of_a_figure():
    """A figure is compared between the sides that have it."""
    sides = {"a": {"figures": {"f": 90.0}}, "b": {"figures": {"f": 90.2}}, "c": {}}
    assert task.agrees("f", 0.2).is_met({"sides": sides})
    assert not task.agrees("f", 0.1).is_met({"sides": sides})
    assert task.agrees("f", 0.1).is_met({"sides": {"c": {}}}) is None


def test_markdown_table():
    """Every line has a cell for each column, a failed side says so."""
    first = result_of(jaxrobust=[4.0, 2.0], peer=[3.0, 3.0])
    first["targets"] = [{"text": "faster", "is_met": True}]
    second = result_of(jaxrobust=[1.0, 0.5])
    second["sides"]["other"] = {"failed": "no memory"}
    lines = table.markdown({"a": first, "b": second}).splitlines()
    assert lines[0] == "| task | jaxrobust | peer | other | ratio to the fastest |"
    assert (
        lines[2] == "| **T** | **2 s** | **3 s (1.50x)** |  | **1.50 [1.50, 1.50]** |"
    )
    assert lines[3] == "| compilation, s | 2.0 | 0.0 |  |  |"
    assert lines[4] == "| peak memory, MiB | 1 | 1 |  |  |"
    assert lines[5] == "| target: faster |  |  |  | met |"
    assert lines[6] == "| **T** | **0.5 s** |  | **failed** |  |"
    assert len({line.count("|") for line in lines}) == 1


def test_documentation_is_written_from_the_results(tmp_path):
    """Marked sections only; what has not been measured is said to be so."""
    origin = {"command": "c", "cores": 2, "processor": "p", "device": "cpu"}
    origin |= {"date": "2026-01-01T00", "commit": "abcdefgh", "python": "3", "jax": "0"}
    saved = result_of(jaxrobust=[1.0, 1.0]) | {"provenance": origin | {"versions": {}}}
    (tmp_path / "cpu.json").write_text(json.dumps({"tasks": {"a": saved}}))
    page = "before\n<!-- benchmark: {} -->\nold\n<!-- end -->\nafter"
    written = documentation.update(page.format("cpu"), tmp_path)
    assert "| **T** | **1 s** |" in written and "old" not in written
    assert "commit abcdefg," in written
    assert written.startswith("before\n") and written.endswith("\nafter")
    assert documentation.update(written, tmp_path) == written
    assert "Not measured yet." in documentation.update(page.format("gpu"), tmp_path)


@pytest.mark.slow
def test_a_problem_survives_the_disk(tmp_path):
    """The model that another process makes of it has the same weights and logits."""
    saved = TASKS["pgd-tutorial"].prepare(QUICK)
    saved.save(tmp_path)
    loaded = Problem.load(tmp_path)
    assert loaded.settings["num_steps"] == 2
    again = weights.pack(
        weights.unpack(loaded), loaded.settings["model"], loaded.arrays["probe"]
    )
    assert set(again.arrays) <= set(saved.arrays)
    for name, array in again.arrays.items():
        np.testing.assert_array_equal(array, saved.arrays[name])


# The others differ from these in numbers only.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("pgd-tutorial", marks=pytest.mark.slow),
        pytest.param("accuracy-standard", marks=pytest.mark.slow),
        pytest.param("train-fgsm", marks=pytest.mark.slow),
        "import",
    ],
)
def test_ours_runs_without_peers(name):
    """Every kind of task, at its quick size; the counts are those of the attack."""
    problem = TASKS[name].prepare(QUICK)
    side = TASKS[name].sides[OURS](problem)
    outcome = side.describe(side.run())
    expected = {"pgd-tutorial": 4 * 2, "train-fgsm": 600 * 4 * 2}
    if name in expected:
        assert outcome.gradients == expected[name]
    if name == "accuracy-standard":
        # Some examples may need less than all: 20 examples, 2 restarts of 3 steps.
        assert outcome.gradients is not None and 0 < outcome.gradients <= 20 * 2 * 4
        assert 0 <= outcome.figures["robust accuracy, %"] <= 100
    if name == "import":
        assert outcome.seconds is not None and outcome.seconds > 0


@pytest.mark.slow
def test_the_gpu_tasks_run_on_a_cpu():
    """The attack at its quick size, in bfloat16."""
    problem = gpu.TASKS["attack-bfloat16"].prepare(QUICK)
    # A forward pass of the network of width 4 has more than a million operations.
    assert problem.settings["forward_flops"] > 1e6
    side = gpu.TASKS["attack-bfloat16"].sides[OURS](problem)
    figures = side.describe(side.run()).figures
    assert figures[gpu.SPEED] > 0 and figures[gpu.SHARE] > 0


@pytest.mark.slow
def test_the_command_in_processes(tmp_path):
    """One task from the command line to the file, without peers."""
    out = tmp_path / "result.json"
    config = run.Config(tasks=("import",), peers=(), quick=True, out=out)
    results = run.main(config)
    saved = json.loads(out.read_text())
    assert saved["tasks"] == json.loads(json.dumps(results))
    saved = saved["tasks"]["import"]
    assert saved["sides"][OURS]["seconds"] > 0
    assert saved["sides"][OURS]["peak_bytes"] > 2**20
    assert {"commit", "date", "processor", "versions"} <= saved["provenance"].keys()


def test_a_side_that_fails_is_noted(tmp_path):
    """The others go on; the message is the last line of the traceback."""
    result = turns.measure(TASKS["import"], ["nobody"], QUICK, rounds=1)
    assert result["sides"]["nobody"] == {"failed": "KeyError: 'nobody'"}
    assert result["ratios"] == {}


def test_a_missing_peer_is_skipped_with_advice(monkeypatch, capsys):
    """The line says what to install."""
    monkeypatch.setattr(peers, "missing", lambda peer: ["torch"])
    assert run._available(run.Config(peers=("torch",))) == []
    assert ".[bench]" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options", [{"tasks": ("unknown",)}, {"peers": ("unknown",)}, {"rounds": 0}]
)
def test_mistakes_are_named(options):
    """The message says what there is."""
    with pytest.raises(ValueError, match=r"take some of|at least 1"):
        run.main(run.Config(**options))


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs the group bench"
)
@pytest.mark.parametrize(
    "name",
    [
        "tutorial_convnet",
        "madry_convnet",
        "small_convnet",
        "small_resnet",
        pytest.param("preact_resnet18", marks=pytest.mark.slow),
    ],
)
def test_twins_in_torch_have_the_same_logits(name):
    """`torch_models.load` compares them; here that it does, on odd image sizes."""
    from benchmarks import torch_models

    spec = {"name": name, "input_shape": (9, 6, 3), "num_classes": 4}
    spec |= {"width": 4} if "resnet" in name else {}
    x = np.random.default_rng(0).random((3, 9, 6, 3), np.float32)
    problem = weights.pack(weights.create(spec), spec, x)
    torch_models.load(problem)
    problem.arrays["probe_logits"] = problem.arrays["probe_logits"] + 1e-3
    with pytest.raises(ValueError, match="not copied correctly"):
        torch_models.load(problem)
