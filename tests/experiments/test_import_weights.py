"""A state of PyTorch becomes a checkpoint that the other commands take."""

import jax
import numpy as np
import pytest

import jaxrobust as jr
from experiments import _common, import_weights

SHAPE = (4, 6, 3)


def state(rng):
    """Return an MLP with one hidden layer: flatten, linear, relu, linear."""
    sizes = {"1.weight": (200, 72), "1.bias": (200,), "3.weight": (100, 200)}
    sizes |= {"3.bias": (100,), "5.weight": (10, 100), "5.bias": (10,)}
    return {n: rng.normal(size=s).astype(np.float32) for n, s in sizes.items()}


def logits_of(state, x):
    """Compute the logits of images [N, C, H, W] as PyTorch does."""
    x = x.reshape(len(x), -1)
    for layer in ("1", "3"):
        x = np.maximum(x @ state[f"{layer}.weight"].T + state[f"{layer}.bias"], 0)
    return x @ state["5.weight"].T + state["5.bias"]


@pytest.fixture
def files(tmp_path):
    """The state, and a probe of it."""
    rng = np.random.default_rng(0)
    arrays = state(rng)
    x = rng.uniform(size=(3, 3, 4, 6)).astype(np.float32)
    np.savez(tmp_path / "w.npz", **{f"module.{n}": a for n, a in arrays.items()})
    np.savez(tmp_path / "probe.npz", x=x, logits=logits_of(arrays, x))
    return tmp_path


def run(directory, *options):
    arguments = [str(directory / "w.npz"), "--model", "mlp", "--input-shape", "4"]
    arguments += ["6", "3", "--out", str(directory / "out"), *options]
    config = _common.parse(import_weights.Config, "import_weights", "", args=arguments)
    return import_weights.main(config)


def test_the_checkpoint_is_the_network(files, capsys):
    """Its logits are those of the probe: raw pixels, also after it was saved."""
    run(files, "--probe", str(files / "probe.npz"), "--dataset", "cifar10")
    assert "raw pixels" in capsys.readouterr().out
    model, metadata = jr.training.load_checkpoint(files / "out")
    assert (metadata["dataset"], metadata["source"]) == ("cifar10", "w.npz")
    probe = np.load(files / "probe.npz")
    logits = jax.jit(jr.models.logits_fn(model))(probe["x"].transpose(0, 2, 3, 1))
    np.testing.assert_allclose(
        logits, probe["logits"], atol=1e-5 * np.abs(probe["logits"]).max()
    )


def test_the_probe_shows_what_weights_do_not(files):
    """Another normalisation fits the arrays and not the logits."""
    probe = ("--probe", str(files / "probe.npz"))
    statistics = ("--mean", "0.5", "0.5", "0.5", "--std", "0.2", "0.2", "0.2")
    with pytest.raises(ValueError, match=r"logits differ by .* look at what they do"):
        run(files, *statistics, *probe)
    assert not (files / "out").exists()
    run(files, *statistics)
    model, _ = jr.training.load_checkpoint(files / "out")
    assert model.normalization == jr.models.Normalization((0.5,) * 3, (0.2,) * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mean", "0.5"), "give both or neither"),
        (("--num-classes", "5"), "other shapes: 5.bias"),
        (("--probe", "absent.npz"), "needed is an .npz file with x"),
        (("--width", "3"), "width"),
    ],
)
def test_misuse(files, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        run(files, *options)
