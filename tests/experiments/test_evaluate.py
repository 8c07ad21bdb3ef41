"""The evaluate command, and weights in PyTorch's layout."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

import jaxrobust as jr
from experiments import evaluate, published_weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network that has not been trained, as training would have saved it."""
    path = tmp_path_factory.mktemp("run") / "best"
    spec = {"name": "mlp", "input_shape": [8, 8, 1], "num_classes": 10, "seed": 0}
    model = jr.models.create(**spec | {"input_shape": (8, 8, 1)})
    metadata = {"model": spec, "dataset": "digits"}
    jr.training.save_checkpoint(path, model, metadata=metadata)
    return path


def run(checkpoint, out, *options):
    arguments = [str(checkpoint), "--eps", "0.05", "--out", str(out), *options]
    return evaluate.main(tyro.cli(evaluate.Config, args=arguments))


@pytest.mark.parametrize(
    "options",
    [
        ("--attack", "fgsm"),
        pytest.param(("--attack", "pgd"), marks=pytest.mark.slow),
    ],
)
def test_writes_its_results(checkpoint, tmp_path, options):
    """Report, record and provenance are there; the state file is gone."""
    report = run(checkpoint, tmp_path, "--num-test", "40", *options)
    saved = json.loads((tmp_path / "evaluate.json").read_text())
    assert saved["report"]["robust_accuracy"] == report.robust_accuracy
    assert saved["name"] == str(checkpoint)
    assert {"commit", "date", "device", "config", "seconds"} <= saved.keys()
    record = json.loads((tmp_path / "robustbench.json").read_text())
    assert record["dataset"] == "digits"
    assert record["external"] == f"{100 * report.robust_accuracy:.2f}"
    assert not (tmp_path / "state.npz").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:not finished")
def test_a_budget(checkpoint, tmp_path):
    """No record for a board until the same command, with more time, has ended."""
    options = ("--attack", "apgd", "--num-test", "20")
    report = run(checkpoint, tmp_path, *options, "--max-seconds", "1e-9")
    assert not report.is_finished and (tmp_path / "state.npz").exists()
    assert not (tmp_path / "robustbench.json").exists()
    saved = json.loads((tmp_path / "evaluate.json").read_text())["report"]
    assert saved["is_finished"] is False
    report = run(checkpoint, tmp_path, *options)
    assert report.is_finished and not (tmp_path / "state.npz").exists()
    assert (tmp_path / "robustbench.json").exists()


def test_an_unknown_attack(checkpoint, tmp_path):
    """The message lists those that there are."""
    with pytest.raises(ValueError, match=r"--attack pdg: choose one of autoattack"):
        run(checkpoint, tmp_path, "--attack", "pdg")


def torch_layout(model) -> dict[str, np.ndarray]:
    """Return the weights as PyTorch stores them: OIHW, channels flattened first."""
    arrays = {}
    for layer, n in ((model.conv1, 0), (model.conv2, 2)):
        arrays[f"{n}.weight"] = np.asarray(layer.kernel[...]).transpose(3, 2, 0, 1)
        arrays[f"{n}.bias"] = np.asarray(layer.bias[...])
    dense = np.asarray(model.dense.kernel[...]).reshape(7, 7, 32, 100)
    arrays["5.weight"] = dense.transpose(3, 2, 0, 1).reshape(100, -1)
    arrays["5.bias"] = np.asarray(model.dense.bias[...])
    arrays["7.weight"] = np.asarray(model.output.kernel[...]).T
    arrays["7.bias"] = np.asarray(model.output.bias[...])
    return arrays


def test_published_weights_are_read(tmp_path):
    """There and back: the same logits."""
    shape = {"input_shape": (28, 28, 1), "num_classes": 10}
    model = jr.models.create("small_convnet", **shape, seed=3)
    np.savez(tmp_path / "weights.npz", **torch_layout(model))
    loaded = published_weights.load_weights(tmp_path / "weights.npz")
    x = jax.random.uniform(jax.random.key(0), (2, 28, 28, 1))
    np.testing.assert_array_equal(jnp.asarray(loaded(x)), model(x))


def test_other_weights_are_refused(tmp_path):
    """The message says what is needed."""
    np.savez(tmp_path / "other.npz", weight=np.zeros(3))
    with pytest.raises(ValueError, match=r"missing: 0.bias .* surplus: weight"):
        published_weights.load_weights(tmp_path / "other.npz")
