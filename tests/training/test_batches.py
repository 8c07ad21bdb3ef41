"""Data that come as batches: what `fit` makes of them, and of those that are wrong."""

import jax
import numpy as np
import optax
import pytest

from jaxrobust import training
from jaxrobust.training import storage
from jaxrobust.training.feed import epoch_order
from tests.training import killed_run
from tests.training.killed_run import KEY, Net, attack, data
from tests.training.test_fit import assert_same_result

X, Y = (np.asarray(array) for array in data(100))
ORDER_KEY = jax.random.split(KEY, 3)[0]


def batches(epoch):
    """The batches that `fit` draws from arrays."""
    order = epoch_order(ORDER_KEY, epoch, 100)
    for i in range(0, 96, 16):
        yield X[order[i : i + 16]], Y[order[i : i + 16]]


def fit(x, num_epochs=2, y=None, **options):
    options = dict(key=KEY, progress=False, ema_decay=0.9) | options
    options |= dict(validation=data(41, seed=1), validation_attack=attack, threat=0.1)
    optimizer, model = optax.adam(0.03), Net(options.pop("seed", 0))
    return training.fit(
        model, killed_run.objective, optimizer, x, y, num_epochs=num_epochs, **options
    )


@pytest.fixture(scope="module")
def whole_run():
    return fit(batches, 3)


def test_they_are_what_arrays_are(whole_run):
    arrays = fit(X, 3, Y, batch_size=16, steps_per_call=1)
    for a, b in zip(whole_run.history, arrays.history, strict=True):
        assert a["step"] == b["step"]
        # Another program may round differently; Adam amplifies that.
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
    assert arrays.best_epoch == whole_run.best_epoch


class Loader:
    """Begins anew, and has a length, as a loader of torch."""

    def __len__(self):
        return 6

    def __iter__(self):
        return batches(0)


@pytest.mark.slow
def test_an_iterable_begins_anew_in_each_epoch():
    as_list = fit(list(batches(0)))
    assert [line["step"] for line in as_list.history] == [6, 12]
    assert_same_result(as_list, fit(Loader()))
    assert_same_result(as_list, fit(lambda epoch: batches(0)))


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [4, 6, 8, 12, 14])
def test_interrupted_is_uninterrupted(whole_run, tmp_path, num_steps):
    """Within the first epoch, whose length is not known yet, at its end, later."""
    taken = []

    def until(epoch):
        for batch in batches(epoch):
            if len(taken) > num_steps:
                raise KeyboardInterrupt
            taken.append(epoch)
            yield batch

    with pytest.raises(KeyboardInterrupt) as interrupt:
        fit(until, 3, out=tmp_path, checkpoint_every=2)
    assert "the same call goes on from there" in str(interrupt.value.__notes__)
    saved = storage.read_info(tmp_path / "last")["run"]
    assert 0 < saved["step"] <= num_steps
    resumed = fit(batches, 3, out=tmp_path, checkpoint_every=4, seed=9)
    assert_same_result(resumed, whole_run)
    assert_same_result(fit(batches, 3, out=tmp_path), whole_run)  # it is over


def changed(epoch, number, change):
    """Batches of which one is another: that of this epoch and number, from 1."""

    def make(now):
        for i, batch in enumerate(batches(now)):
            yield change(*batch) if (now, i) == (epoch - 1, number - 1) else batch

    return make


@pytest.mark.thin
@pytest.mark.parametrize(
    "change, error, message",
    [
        (
            lambda x, y: (x[:8], y[:8]),
            ValueError,
            r"x at batch 3 of epoch 2 is float32",
        ),
        (
            lambda x, y: (x.astype(np.uint8), y),
            ValueError,
            r"is uint8\[16, 6\], and was",
        ),
        (lambda x, y: (x, y[:8]), ValueError, "y at batch 3 of epoch 2"),
        (lambda x, y: (x, y + 3), ValueError, "the model has 3 classes"),
        (lambda x, y: (x, y, x), TypeError, "is a tuple; a pair"),
        (lambda x, y: {"x": x}, TypeError, "batch 3 of epoch 2 is a dict"),
        (lambda x, y: 1 / 0, ZeroDivisionError, "division"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, change, error, message):
    """The last good checkpoint stays, and the same call goes on from it."""
    with pytest.raises(error, match=message) as caught:
        fit(changed(2, 3, change), out=tmp_path, checkpoint_every=2)
    notes = "".join(caught.value.__notes__)
    assert "batch 3 of epoch 2" in str(caught.value) + notes
    assert "The checkpoint of step 8" in notes
    assert storage.read_info(tmp_path / "last")["run"]["step"] == 8


def test_what_is_wrong_at_the_start():
    with pytest.raises(TypeError, match=r"x is a generator, used up.*num_epochs is 2"):
        fit(batches(0))
    fit(batches(0), 1)
    with pytest.raises(ValueError, match="no batches in epoch 1"):
        fit([])
    with pytest.raises(TypeError, match="y is missing"):
        fit(X)
    with pytest.raises(TypeError, match="x is of type int"):
        fit(3)
    with pytest.raises(ValueError, match="batch_size is 8, and the first batch has 16"):
        fit(batches, batch_size=8)
    with pytest.raises(ValueError, match="NaN or infinite"):
        fit([(X[:16] * np.nan, Y[:16])])
    with pytest.raises(ValueError, match="give validation="):
        training.fit(
            Net(), killed_run.objective, optax.sgd(0.1), batches, num_epochs=1,
            key=KEY, monitor=training.Monitor(threat=0.1),
        )  # fmt: skip


class Once:
    """Somebody's iterator, which forgets to begin anew."""

    def __init__(self):
        self.batches = batches(0)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.batches)


@pytest.mark.slow
def test_batches_that_end():
    with pytest.raises(
        ValueError, match=r"no batches in epoch 2\. Pass something that"
    ):
        fit(Once())
    with pytest.raises(ValueError, match=r"epoch 2 have ended after 3, and .* has 6"):
        fit(lambda epoch: list(batches(0))[: 6 - 3 * epoch])


def test_batches_as_in_an_epoch_of_another_length_are_cut():
    """What an epoch has beyond the steps of the first is left."""
    result = fit(lambda epoch: list(batches(0))[: 3 + epoch])
    assert [line["step"] for line in result.history] == [3, 6]
