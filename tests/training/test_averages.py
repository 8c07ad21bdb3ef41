"""Averages of the weights: the formula, the statistics, resumption."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrobust import training
from jaxrobust.training.run import RunDirectory
from tests.training import killed_run
from tests.training.killed_run import Net, data
from tests.training.test_fit import assert_same, assert_same_result

SWA = training.SWA(start=0.4)  # of 5 epochs: from the second on


def run(num_epochs, out=None, average=SWA, **options):
    return killed_run.run(num_epochs, out, ema_decay=None, average=average, **options)


@pytest.fixture(scope="module")
def whole_run():
    return run(5)


@pytest.mark.slow
def test_it_is_the_mean_of_the_ends_of_late_epochs(whole_run):
    ends = [run(i, average=None).last for i in (2, 3, 4, 5)]
    for name in ("hidden", "out"):
        kernels = [getattr(model, name).kernel[...] for model in ends]
        np.testing.assert_allclose(
            getattr(whole_run.last, name).kernel[...], np.mean(kernels, 0), rtol=1e-5
        )  # sums of four float32 in another order
    assert whole_run.last.dropout.deterministic
    x, y = data(41, seed=1)
    accuracy = float((whole_run.last(x).argmax(-1) == y).mean())
    assert whole_run.history[-1]["val_clean"] == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.slow
def test_every_other_epoch():
    average = training.SWA(start=0.4, every=2)  # the second and the fourth
    ends = [run(i, average=None).last.out.kernel[...] for i in (2, 4)]
    found = run(5, average=average).last.out.kernel[...]
    np.testing.assert_allclose(found, np.mean(ends, 0), rtol=1e-5)


@pytest.mark.slow
def test_its_statistics_are_those_of_its_own_hidden_units(whole_run):
    """Nearly: of an epoch's batches, which leave four examples out."""
    x, _ = data(100)
    hidden = whole_run.last.hidden(x)
    np.testing.assert_allclose(whole_run.last.norm.mean[...], hidden.mean(0), atol=0.02)
    assert whole_run.last.norm.momentum == 0.99


@pytest.mark.slow
@pytest.mark.thin
@pytest.mark.parametrize("num_saves", [2, 4])
def test_interrupted_is_uninterrupted(whole_run, tmp_path, monkeypatch, num_saves):
    saves, original = iter(range(num_saves)), RunDirectory.save

    def save(self, state):
        if next(saves, None) is None:
            raise KeyboardInterrupt
        original(self, state)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDirectory, "save", save)
        run(5, tmp_path, checkpoint_every=5)
    assert_same_result(run(5, tmp_path, checkpoint_every=5, seed=9), whole_run)
    with pytest.raises(ValueError, match="averaged_from_epoch was 2 and is 4"):
        run(9, tmp_path)


@pytest.mark.slow
def test_ema_has_a_short_form():
    long = killed_run.run(1, ema_decay=None, average=training.EMA(0.9))
    assert_same(long.last, killed_run.run(1, ema_decay=0.9).last)


def test_refreshed_statistics_are_means_of_those_of_the_batches():
    x, _ = data(10)
    model = Net()
    fresh = training.refresh_statistics(model, 16 * x, batch_size=4, scale=16.0)
    hidden = [model.hidden(x[i : i + 4]) for i in (0, 4)]
    mean = np.mean([h.mean(0) for h in hidden], 0)
    var = np.mean([h.var(0) for h in hidden], 0)
    # Flax takes the variance as E[h^2] - E[h]^2, in float32.
    np.testing.assert_allclose(fresh.norm.mean[...], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fresh.norm.var[...], var, rtol=1e-3, atol=1e-6)
    assert jnp.all(model.norm.mean[...] == 0) and not model.dropout.deterministic
    linear = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    assert_same(training.refresh_statistics(linear, x, batch_size=4), linear)
    with pytest.raises(ValueError, match="batch_size is 11"):
        training.refresh_statistics(model, x, batch_size=11)


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(ema_decay=0.9), ValueError, "are both given"),
        (dict(ema_decay=None, average=0.9), TypeError, r"average=0.9 is no average"),
    ],
)
def test_misuse(options, error, message):
    with pytest.raises(error, match=message):
        killed_run.run(1, **dict(average=SWA) | options)


@pytest.mark.parametrize("wrong", [dict(start=1.0), dict(start=-1), dict(every=0)])
def test_misuse_of_the_value(wrong):
    with pytest.raises(ValueError, match=rf"SWA\({next(iter(wrong))}="):
        training.SWA(**wrong)
    with pytest.raises(ValueError, match=r"EMA\(1.0\)"):
        training.EMA(1.0)


def test_batches_are_drawn_once():
    x, y = (np.asarray(a) for a in data(16))
    with pytest.raises(ValueError, match="batches are drawn once"):
        training.fit(
            Net(), killed_run.objective, killed_run.optax.sgd(0.1), [(x, y)],
            num_epochs=1, key=jax.random.key(0), average=SWA,
        )  # fmt: skip
