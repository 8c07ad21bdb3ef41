"""Catastrophic overfitting: when it is seen, and what becomes of the run."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import jaxrobust as jr
from jaxrobust import training
from jaxrobust.training import storage
from jaxrobust.training.monitor import Check
from jaxrobust.training.run import RunDirectory
from tests.training import killed_run
from tests.training.killed_run import Net, cross_entropy, data
from tests.training.test_fit import assert_same_result, read_metrics, without_time

CHANCE = 0.1
COLLAPSED = pytest.warns(training.CollapseWarning)


@pytest.mark.parametrize(
    "before, now, is_collapsed",
    [
        (None, (0.95, 0.00), True),  # full-step FGSM, within the first epoch
        ((0.50, 0.42), (0.90, 0.02), True),
        ((0.35, 0.32), (0.30, 0.05), True),  # a fall, before the fast one rises
        (None, (0.10, 0.10), False),  # a constant, at the start
        (None, (0.11, 0.00), False),  # unlucky: below the constant
        (None, (0.33, 0.05), False),  # not robust yet
        ((0.12, 0.10), (0.35, 0.00), False),
        ((0.56, 0.50), (0.30, 0.24), False),  # a bad step: both fall
        ((0.56, 0.50), (0.55, 0.44), False),  # 256 examples: an error of 0.03
        ((0.95, 0.90), (0.96, 0.89), False),
        ((0.63, 0.43), (0.67, 0.40), False),  # digits at 0.25: FGSM is weak there
    ],
)
def test_the_rule(before, now, is_collapsed):
    before = before and Check(*before)
    found = training.Monitor().is_collapsed(before, Check(*now), CHANCE)
    assert found == is_collapsed


def test_two_classes_that_a_constant_gets_half_right():
    """Its accuracy falls under attack once it is no constant any more."""
    monitor = training.Monitor()
    constant, learning = Check(0.5, 0.5), Check(0.6, 0.1)
    assert not monitor.is_collapsed(constant, learning, 0.5)
    assert monitor.is_collapsed(learning, Check(0.9, 0.1), 0.5)


@pytest.mark.parametrize(
    "settings, error, message",
    [
        (dict(drop=0), ValueError, r"Monitor\(drop=0\)"),
        (dict(gap=2), ValueError, r"Monitor\(gap=2\)"),
        (dict(every=0), ValueError, r"Monitor\(every=0\)"),
        (dict(num_examples=0.5), ValueError, r"Monitor\(num_examples=0.5\)"),
        (dict(attack="PGD"), TypeError, "is not an attack"),
        (
            dict(fast=jr.FGSM(loss=jr.losses.targeted(jr.losses.cross_entropy))),
            (TypeError, ValueError),
            r"Monitor\(fast=\)",
        ),
    ],
)
def test_misuse_of_the_value(settings, error, message):
    with pytest.raises(error, match=message):
        training.Monitor(**settings)


class Trapped(Net):
    """It has a trigger, which no training data pull, and which does nothing yet."""

    def __init__(self, seed=0):
        super().__init__(seed)
        self.trap = nnx.Param(jnp.zeros(()))

    def __call__(self, x):
        pulled = 1000 * self.trap[...] * nnx.relu(x[:, :1] - 2)
        return super().__call__(jnp.minimum(x, 1)) + pulled * jnp.eye(3)[:1]


def pull(logits_fn, x, y, *, threat, key=None):
    return x.at[:, 0].set(3.0)


def leave(logits_fn, x, y, *, threat, key=None):
    return x


def fragile(trained_fn, attacked_fn, x, y, *, key, step):
    """Standard training that makes the trigger work, from step 10 on."""
    pulled = jnp.where(step < 10, 0, 1000 * trained_fn.trap[...])
    return cross_entropy(trained_fn(x), y) - pulled, {}


MONITOR = training.Monitor(
    attack=pull, fast=leave, threat=0.1, every=5, num_examples=41,
    then=killed_run.objective,
)  # fmt: skip


def run(num_epochs, out=None, monitor=MONITOR, **changes):
    options = dict(batch_size=16, key=killed_run.KEY, validation=data(41, seed=1))
    options |= dict(validation_attack=killed_run.attack, threat=0.1, ema_decay=0.9)
    x, y = data(100)
    return training.fit(
        Trapped(changes.pop("seed", 0)), changes.pop("objective", fragile),
        optax.adam(0.03), x, y, num_epochs=num_epochs,
        out=out, monitor=monitor, progress=False, **options | changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole_run():
    with COLLAPSED:
        return run(4)


@pytest.mark.slow
def test_the_run_goes_back_and_on_with_the_other_objective(whole_run):
    """It is the run that would have changed its objective at the last sound check."""
    collapsed = [line.get("collapsed") for line in whole_run.history]
    assert collapsed == [None, 15, None, None]  # the epoch of step 10 is told anew

    def changing(trained_fn, attacked_fn, x, y, *, key, step):
        x_adv = killed_run.attack(attacked_fn, x, y, threat=0.05, key=key)
        seen = jnp.where(step < 10, x, jax.lax.stop_gradient(x_adv))
        return cross_entropy(trained_fn(seen), y), {}

    other = run(4, monitor=None, objective=changing)
    for a, b in zip(whole_run.history, other.history, strict=True):
        # Another program may round differently; Adam amplifies that.
        assert a["step"] == b["step"]
        if "collapsed" not in a:  # whose means are of the other objective alone
            assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-3)
    assert whole_run.history[-1]["monitor_strong"] > 0.4  # 0.2 after a collapse
    assert float(whole_run.last.trap[...]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("num_saves", [1, 3, 4, 5])
def test_interrupted_is_uninterrupted(whole_run, tmp_path, monkeypatch, num_saves):
    """Before the collapse, between it and the check, and after it."""
    saves, original = iter(range(num_saves)), RunDirectory.save

    def save(self, state):
        if next(saves, None) is None:
            raise KeyboardInterrupt
        original(self, state)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", training.CollapseWarning)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(RunDirectory, "save", save)
            run(4, tmp_path, checkpoint_every=4)
        resumed = run(4, tmp_path, checkpoint_every=4, seed=9)
    assert_same_result(resumed, whole_run)
    assert without_time(read_metrics(tmp_path)) == without_time(resumed.history)
    best, _ = training.load_checkpoint(tmp_path / "best", Trapped())
    assert jnp.array_equal(best.out.kernel[...], whole_run.best.out.kernel[...])


def test_without_another_objective_it_is_said_once(capfd):
    monitor = dataclasses.replace(MONITOR, every=4, then=None)
    x, y = data(100)
    with pytest.warns(training.CollapseWarning) as caught:
        result = training.fit(
            Trapped(), fragile, optax.adam(0.03), x, y, num_epochs=5, batch_size=16,
            key=killed_run.KEY, monitor=monitor, steps_per_call=4,
        )  # fmt: skip
    (warning,) = caught
    assert warning.filename == __file__
    lines = [line for line in result.history if "collapsed" in line]
    assert len(lines) == 1 and len(result.history) == 5
    step = lines[0]["collapsed"]
    assert f"seen at step {step}" in str(warning.message)
    assert "Monitor(then=objective)" in str(warning.message)
    (said,) = [s for s in capfd.readouterr().err.splitlines() if "collapsed" in s]
    assert said.startswith(f"collapsed at step {step}  fast ")
    assert all("monitor_fast" in line for line in result.history)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (dict(monitor=jr.FGSM()), TypeError, r"pass jr.training.Monitor\(\)"),
        (dict(monitor=training.Monitor()), ValueError, "needs one threat"),
        (
            dict(monitor=training.Monitor(threat=0.1, then=jr.FGSM())),
            TypeError,
            r"Monitor\(then=\)=.* is not an objective",
        ),
        (
            dict(monitor=training.Monitor(threat=jr.Linf(0.1, mask=jnp.ones(5)))),
            ValueError,
            r"mask of the monitor's threat has shape \(5,\)",
        ),
    ],
)
def test_misuse(changes, error, message):
    with pytest.raises(error, match=message):
        run(1, **changes)


def test_another_monitor_is_another_run(tmp_path):
    run(1, tmp_path)
    with pytest.raises(ValueError, match="monitor was Monitor"):
        run(2, tmp_path, monitor=None)
    state = json.dumps(storage.read_info(tmp_path / "last")["run"]["watched"])
    assert '"is_collapsed": false' in state


FIELD = jr.Linf(0.3)
PGD = jr.training.adversarial(jr.PGD(num_steps=7), FIELD)


def train_digits(objective, **options):
    """An MLP at a large eps, where the full step of FGSM collapses."""
    digits = jr.data.load("digits")
    model = jr.models.create("mlp", input_shape=(8, 8, 1), num_classes=10)
    return training.fit(
        model, objective, optax.adam(3e-3), digits.x_train, digits.y_train,
        num_epochs=40, batch_size=64, scale=16.0, key=jax.random.key(0),
        progress=False, validation=(digits.x_test, digits.y_test), **options,
    )  # fmt: skip


@pytest.mark.slow
def test_fgsm_on_digits_collapses_and_pgd_does_not():
    fgsm = training.adversarial(jr.FGSM(), FIELD)
    with COLLAPSED:
        collapsed = train_digits(fgsm, monitor=training.Monitor())
    last = collapsed.history[-1]
    assert last["monitor_fast"] > 0.4 > 0.1 > last["monitor_strong"]
    sound = train_digits(PGD, monitor=training.Monitor())  # a warning is an error here
    with COLLAPSED:
        rescued = train_digits(fgsm, monitor=training.Monitor(then=PGD))
    for result in (sound, rescued):
        assert result.history[-1]["monitor_strong"] > 0.15, result.history[-1]
