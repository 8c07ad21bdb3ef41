"""What `experiments.train` writes is what `experiments.publish_weights` reads."""

import json

import pytest

import jaxrobust as jr
from experiments import publish_weights, train


@pytest.mark.slow
def test_a_training_run_is_published(tmp_path):
    """FGSM's report stands for AutoAttack's, which would take a minute."""
    options = ["--num-epochs", "1", "--num-train", "300", "--num-test", "40"]
    options += ["--attacks", "fgsm", "--out", str(tmp_path)]
    result = train.main(train.parse(["digits_trades", *options]))
    result["reports"]["autoattack"] = result["reports"].pop("fgsm")
    (tmp_path / "result.json").write_text(json.dumps(result, default=str))
    config = publish_weights.Config(tmp_path, "digits", tmp_path / "weights")
    card = publish_weights.main(config)
    assert (card["data"], card["recipe"]) == ("digits", "digits_trades")
    accuracy = card["accuracy"]["autoattack"]
    assert accuracy["num_examples"] == 40
    low, high = accuracy["interval"]
    assert low <= accuracy["accuracy"] <= high
    assert jr.models.create(**card["architecture"]) is not None
