"""Weights of our own: what is published is what is loaded, and is checked."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

import jaxrobust as jr
from experiments import publish_weights
from jaxrobust.models import arrays, shipped

SPEC = {"name": "small_resnet", "input_shape": [8, 8, 1], "num_classes": 3, "seed": 0}
SPEC |= {"width": 2}


def report(clean, robust):
    return {
        "num_examples": 500,
        "clean_accuracy": clean,
        "clean_interval": [clean - 0.01, clean + 0.01],
        "robust_accuracy": robust,
        "robust_interval": [robust - 0.02, robust + 0.02],
    }


RESULT = {
    "recipe": "digits_trades",
    "objective": "trades(PGD(num_steps=10), Linf(0.2), beta=6.0)",
    "threat": "Linf(0.2)",
    "config": {"evaluated": "best", "eps": 0.2},
    "train_seconds": 61.5,
    "reports": {"pgd": report(0.97, 0.71), "autoattack": report(0.97, 0.68)},
    "command": "python -m experiments.train digits_trades",
    "commit": "0123456789abcdef",
    "date": "2026-11-28T06:00:00+00:00",
    "processor": "an abacus",
    "jax": "0.10.2",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What `experiments.train` leaves, of a network with statistics of its own."""
    out = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    network = nnx.eval_shape(lambda: jr.models.create(**SPEC))
    filled = {
        name: rng.uniform(0.1, 0.3, leaf.shape).astype(np.float32)
        for name, leaf in arrays.named(network).items()
    }
    model = arrays.from_arrays(network, filled)
    metadata = {"model": SPEC, "dataset": "digits"}
    jr.training.save_checkpoint(out / "best", model, metadata)
    (out / "result.json").write_text(json.dumps(RESULT))
    return out, model


def publish(directory, out, name="digits_trades"):
    return publish_weights.main(publish_weights.Config(directory, name, out))


def test_published_and_loaded(run, tmp_path):
    """The same logits, in evaluation mode; one program serves both."""
    directory, model = run
    publish(directory, tmp_path)
    loaded = shipped.load("digits_trades", _directory=tmp_path)
    assert loaded.norm.use_running_average
    functions = [jr.models.logits_fn(m) for m in (model, loaded)]
    first, second = map(jax.tree.structure, functions)
    assert first == second
    for ours, theirs in zip(*map(jax.tree.leaves, functions), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_card(run, tmp_path, capsys):
    """It says where the weights come from and what was measured, and reads well."""
    publish(run[0], tmp_path)
    assert "wrote digits_trades.npz" in capsys.readouterr().out
    card = shipped.card("digits_trades", _directory=tmp_path)
    assert card["architecture"] == SPEC and card["data"] == "digits"
    assert (card["recipe"], card["eps"]) == ("digits_trades", 0.2)
    assert card["accuracy"]["autoattack"] == {
        "accuracy": 0.68,
        "interval": [0.66, 0.7000000000000001],
        "num_examples": 500,
    }
    assert str(card) == (
        "digits_trades: small_resnet on digits, attacked in Linf(0.2)\n"
        "    clean        97.00%  (96.00% to 98.00%, 500 examples)\n"
        "    pgd          71.00%  (69.00% to 73.00%, 500 examples)\n"
        "    autoattack   68.00%  (66.00% to 70.00%, 500 examples)\n"
        "trained by python -m experiments.train digits_trades\n"
        f"commit 0123456, 2026-11-28, sha256 {card['sha256'][:8]}"
    )


def test_the_same_weights_are_the_same_file(run):
    """A checksum says something about the weights, not about the day."""
    model = run[1]
    assert shipped.to_bytes(model) == shipped.to_bytes(model)


def test_files_that_do_not_belong_together(run, tmp_path):
    """The checksum of the card is that of the arrays."""
    publish(run[0], tmp_path)
    (tmp_path / "digits_trades.npz").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"is not the file that digits_trades\.json"):
        shipped.load("digits_trades", _directory=tmp_path)


def test_unknown_names(run, tmp_path):
    """Close names are offered; all are listed."""
    with pytest.raises(ValueError, match="this version has none"):
        shipped.load("digits", _directory=tmp_path)
    publish(run[0], tmp_path)
    with pytest.raises(ValueError, match="did you mean 'digits_trades'"):
        shipped.card("digit_trades", _directory=tmp_path)


def test_what_is_not_published(run, tmp_path, monkeypatch):
    """Without AutoAttack, too large, without a result, by a strange name."""
    directory, _ = run
    monkeypatch.setattr(publish_weights, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="the package takes files of"):
        publish(directory, tmp_path)
    with pytest.raises(ValueError, match="small letters"):
        publish(directory, tmp_path, "../a")
    with pytest.raises(FileNotFoundError, match=r"there is no .*result\.json"):
        publish(tmp_path, tmp_path)
    reports = {"pgd": RESULT["reports"]["pgd"]}
    (tmp_path / "result.json").write_text(json.dumps(RESULT | {"reports": reports}))
    with pytest.raises(ValueError, match="no report of AutoAttack"):
        publish(tmp_path, tmp_path)
    assert not list(tmp_path.glob("*.npz"))


def test_what_comes_with_the_package():
    """Each fits, is small, and has a card with AutoAttack's figure."""
    sizes = []
    for name in jr.models.SHIPPED:
        card = jr.models.card(name)
        assert card["name"] == name and "autoattack" in card["accuracy"]
        assert jr.models.load(name) is not None
        sizes.append((publish_weights.WEIGHTS / f"{name}.npz").stat().st_size)
    assert max(sizes, default=0) <= publish_weights.MOST_BYTES
    assert sum(sizes) <= 10_000_000
