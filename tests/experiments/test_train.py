"""`experiments.train` and its recipes; `experiments.compare_methods`."""

import json

import pytest
import tyro

import jaxrobust as jr
from experiments import _methods, compare_methods, recipes, train

QUICK = ["--num-epochs", "1", "--num-train", "300", "--num-test", "40"]
QUICK += ["--attacks", "fgsm"]


def run(out, *options):
    arguments = ["digits_trades", *QUICK, "--out", str(out), *options]
    return train.main(train.parse(arguments))


@pytest.mark.slow
def test_a_recipe_is_trained_attacked_and_resumed(tmp_path):
    """The same command again trains nothing more, and says the same."""
    result = run(tmp_path)
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["recipe"] == "digits_trades"
    assert saved["config"]["recipe"]["num_epochs"] == 1
    assert saved["reports"]["fgsm"]["num_examples"] == 40
    assert {"commit", "date", "device", "threat", "objective"} <= saved.keys()
    again = run(tmp_path)
    assert again["history"] == result["history"]
    model, metadata = jr.training.load_checkpoint(tmp_path / "best")
    assert metadata["dataset"] == "digits" and model is not None
    with pytest.raises(ValueError, match=r"other settings.*num_train was 300"):
        run(tmp_path, "--num-train", "200")


def test_an_unknown_recipe_or_attack_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no recipe .digits..*digits_trades"):
        train.parse(["digits"])
    with pytest.raises(ValueError, match="choose from autoattack"):
        run(tmp_path, "--attacks", "autoatack")


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_recipe_says_how_to_run_it_and_what_to_expect(name):
    """And makes an objective on its threat."""
    module = recipes.load(name)
    for word in (f"experiments.train {name}", "Time ", "Expected "):
        assert word in (module.__doc__ or "")
    objective = module.objective(jr.Linf(module.EPS), 1000)
    assert objective.threat == jr.Linf(module.EPS)
    assert train.parse([name]).recipe == module.RECIPE


def test_the_budget_of_a_method_counts_its_attack():
    """PGD-10: 10 gradients and 1; TRADES: one more, and the forward of its clean logits."""
    methods = _methods.methods(10)
    assert methods["standard"].cost(10) == 1
    assert methods["FGSM"].cost(10) == 2
    assert methods["PGD"].cost(10) == 11
    assert methods["PGD + AWP"].cost(10) == 12
    assert methods["TRADES"].cost(10) == 12


@pytest.mark.slow
def test_methods_are_compared_and_go_on(tmp_path):
    """A second call with one more method trains that one alone."""
    options = ["--methods", "standard", "FGSM", "--seeds", "0", "1", "--budget", "4"]
    options += ["--num-train", "200", "--num-test", "40", "--attacks", "fgsm"]
    options += ["--out", str(tmp_path)]
    first = compare_methods.main(tyro.cli(compare_methods.Config, args=options))
    assert [row["num_epochs"] for row in first["rows"].values()] == [4, 2]
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    more = [*options[:2], "FGSM", "TRADES", *options[3:]]
    second = compare_methods.main(tyro.cli(compare_methods.Config, args=more))
    assert second["runs"]["FGSM"] != [] and "TRADES" in second["rows"]
    for before, now in zip(first["runs"]["FGSM"], second["runs"]["FGSM"], strict=True):
        assert before["train_seconds"] == now["train_seconds"]
        assert before["test_seconds"] == now["test_seconds"]  # read, not attacked again
        assert before["accuracies"] == now["accuracies"]
