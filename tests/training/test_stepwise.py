"""Single steps, and being told of epochs: the user's own logging."""

import numpy as np
import optax
import pytest

from jaxrobust import training
from jaxrobust.training import storage
from tests.training import killed_run
from tests.training.killed_run import KEY, Net, data
from tests.training.test_fit import assert_same, assert_same_result, without_time

X, Y = data(100)


def steps(x=X, y=Y, model=None, **options):
    options = dict(key=KEY, batch_size=16, ema_decay=0.9) | options
    optimizer = optax.adam(optax.linear_schedule(0.03, 0.003, 60))
    return training.steps(
        model or Net(), killed_run.objective, optimizer, x, y, **options
    )


def test_steps_are_those_of_fit():
    whole = killed_run.run(2, steps_per_call=1, validation=None,
                           validation_attack=None, threat=None)  # fmt: skip
    taken, losses = [], []
    for step in steps(num_epochs=2):
        taken.append((step.step, step.epoch, step.ends_epoch))
        losses.append(float(step.metrics["loss"]))
        if step.step == 2:
            early, second = step, step.model()
    assert taken == [(i + 1, i // 6 + 1, i % 6 == 5) for i in range(12)]
    assert_same(step.model(), whole.last)
    means = [np.mean(losses[:6]), np.mean(losses[6:])]
    np.testing.assert_allclose(means, [h["train_loss"] for h in whole.history])
    assert not np.array_equal(second.out.kernel[...], whole.last.out.kernel[...])
    with pytest.raises(RuntimeError, match="model of step 2 is gone, step 12"):
        early.model()


def test_misuse_is_found_before_the_first_step():
    with pytest.raises(ValueError, match="num_epochs is 0"):
        steps(num_epochs=0)
    with pytest.raises(ValueError, match="batch_size is 101"):
        steps(batch_size=101)
    with pytest.raises(TypeError, match="batch_size is missing"):
        steps(batch_size=None)


def test_batches_without_an_end():
    """A generator is for one epoch: that it is over is said then."""
    x, y = np.asarray(X), np.asarray(Y)
    single = ((x[:16], y[:16]) for _ in range(2))
    taken = []
    with pytest.raises(TypeError, match="epoch 2 needs them again"):
        for step in steps(single, None, batch_size=None):
            taken.append(step.ends_epoch)
    assert taken == [False, True]


def stop_after(patience):
    return lambda line: line["epoch"] - line["best_epoch"] >= patience


class Log:
    """Remembers, and stops where a number is reached."""

    def __init__(self, last):
        self.lines, self.last = [], last

    def __call__(self, line):
        self.lines.append(line)
        return len(self.lines) == self.last


@pytest.mark.slow
def test_each_line_is_told_and_true_ends_the_run(tmp_path):
    log = Log(2)
    stopped = killed_run.run(4, tmp_path, on_epoch=log, checkpoint_every=100)
    assert log.lines == stopped.history and len(log.lines) == 2
    assert_same_result(stopped, killed_run.run(2))
    assert storage.read_info(tmp_path / "last")["run"]["step"] == 12
    again = Log(2)
    assert_same_result(killed_run.run(4, tmp_path, on_epoch=again), stopped)
    assert again.lines == log.lines, "a resumed run tells what it has done"
    on = Log(3)
    resumed = killed_run.run(4, tmp_path, on_epoch=on)
    assert without_time(on.lines) == without_time(resumed.history)
    assert_same_result(resumed, killed_run.run(3))


def test_patience():
    """The third epoch's steps throw the model away."""
    optimizer = optax.sgd(lambda step: 0.3 * (1 + 1e3 * (step >= 12)))
    result = training.fit(
        Net(), killed_run.objective, optimizer, X, Y, num_epochs=9, batch_size=16,
        key=KEY, validation=data(41, seed=1), on_epoch=stop_after(2),
    )  # fmt: skip
    best = [line["best_epoch"] for line in result.history]
    assert len(best) == result.best_epoch + 2 < 9
    assert best[-1] == result.best_epoch
