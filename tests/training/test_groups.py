"""What `fit` takes in groups, and the short forms of their parts: one and the same."""

import dataclasses
import inspect
import typing

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrobust as jr
from jaxrobust import training
from jaxrobust.training import Checkpoints, Validation, storage
from jaxrobust.training.groups import Short
from jaxrobust.training.run import RunDirectory
from tests.training.test_fit import assert_same, without_time

KEY = jax.random.key(0)
X = np.linspace(0, 1, 48, dtype=np.float32).reshape(8, 6)
Y = np.arange(8) % 3
ATTACK, THREAT = jr.FGSM(), jr.Linf(0.1)
SCORED = Validation(X, Y, attack=ATTACK, threat=THREAT, batch_size=3)


def arguments(**options):
    model = nnx.Linear(6, 3, rngs=nnx.Rngs(options.pop("seed", 0)))
    data = (model, training.standard(), optax.sgd(0.5), X, Y)
    return data, dict(key=KEY, batch_size=4, num_epochs=2) | options


def fit(**options):
    data, options = arguments(**options)
    return training.fit(*data, progress=False, **options)


def assert_same_result(one, other):
    assert_same(one.last, other.last)
    assert_same(one.best, other.best)
    assert without_time(one.history) == without_time(other.history)


def test_a_group_is_its_short_forms(tmp_path):
    """To the bit, and as a run to go on with: what one has begun the other ends."""
    short = dict(validation=(X, Y), validation_attack=ATTACK, threat=THREAT)
    short |= dict(validation_batch_size=3, checkpoint_every=3, metadata={"a": 1})
    short |= dict(ema_decay=0.9)
    flat = fit(out=tmp_path / "flat", **short)
    average = training.EMA(0.9)
    where = Checkpoints(tmp_path / "grouped", every=3, metadata={"a": 1})
    grouped = fit(validation=SCORED, average=average, out=where)
    assert_same_result(flat, grouped)
    assert len(flat.history) == 2 and "val_robust" in flat.history[-1]
    infos = [storage.read_info(tmp_path / n / "last") for n in ("flat", "grouped")]
    for name in ("settings", "programs", "step"):
        assert infos[0]["run"][name] == infos[1]["run"][name]
    assert infos[0]["metadata"]["a"] == infos[1]["metadata"]["a"] == 1
    where = Checkpoints(tmp_path / "flat", metadata={"a": 1})
    longer = fit(validation=SCORED, average=average, out=where, num_epochs=3, seed=9)
    again = fit(out=tmp_path / "grouped", num_epochs=3, seed=9, **short)
    assert_same_result(longer, again)
    assert len(longer.history) == 3 and longer.history[:2] == flat.history
    others = dataclasses.replace(SCORED, batch_size=5)
    with pytest.raises(ValueError, match="another validation"):
        fit(validation=others, average=average, out=where, num_epochs=3)


def test_checkpoints_say_when_and_whether_to_go_on(tmp_path):
    def run(seed, **options):
        return fit(num_epochs=1, seed=seed, out=Checkpoints(tmp_path, **options))

    first = run(0)
    assert_same_result(run(1), first)
    fresh = run(1, resume=False)
    assert_same_result(fresh, fit(num_epochs=1, seed=1))
    assert not np.array_equal(fresh.last.kernel[...], first.last.kernel[...])


def test_the_steps_between_checkpoints(tmp_path, monkeypatch):
    saved, original = [], RunDirectory.save

    def save(self, run):
        saved.append(run.step)
        original(self, run)

    monkeypatch.setattr(RunDirectory, "save", save)
    fit(out=tmp_path / "flat", checkpoint_every=3)
    fit(out=Checkpoints(tmp_path / "grouped", every=3))
    assert saved == 2 * [3, 4], "of 4 steps"


@pytest.mark.parametrize("nowhere", [Checkpoints(None), Checkpoints(""), ""])
def test_nothing_is_written_without_a_directory(tmp_path, monkeypatch, nowhere):
    monkeypatch.chdir(tmp_path)
    fit(num_epochs=1, out=nowhere)
    assert not list(tmp_path.iterdir())


def test_a_pair_is_clean_validation():
    pair, group = fit(validation=(X, Y)), fit(validation=Validation(X, Y))
    assert_same_result(pair, group)
    assert "val_clean" in pair.history[0] and "val_robust" not in pair.history[0]


def test_steps_take_the_average():
    def last(**options):
        data, options = arguments(**options)
        *_, step = training.steps(*data, **options)
        return step.model()

    average = last(average=training.EMA(0.9))
    assert_same(average, last(ema_decay=0.9))
    assert not np.array_equal(average.kernel[...], last().kernel[...])
    with pytest.raises(ValueError, match=r"SWA\(\) is taken at the ends .*EMA\(decay"):
        last(average=training.SWA())
    with pytest.raises(ValueError, match="are both given"):
        last(average=training.EMA(0.9), ema_decay=0.9)


@pytest.mark.parametrize(
    "name, value, group, long",
    [
        ("validation_attack", ATTACK, "validation", r"Validation\(attack"),
        ("threat", THREAT, "validation", r"Validation\(threat"),
        ("validation_batch_size", 3, "validation", r"Validation\(batch_size"),
        ("checkpoint_every", 3, "out", r"Checkpoints\(every"),
        ("metadata", {}, "out", r"Checkpoints\(metadata"),
        ("resume", False, "out", r"Checkpoints\(resume"),
        ("ema_decay", 0.9, "average", r"average=EMA\("),
    ],
)
def test_a_short_form_beside_its_group(tmp_path, name, value, group, long):
    groups = dict(validation=SCORED, out=Checkpoints(tmp_path / "run"))
    groups |= dict(average=training.SWA())
    given = {group: groups[group]}
    message = (
        f"^{name}=.* and {group}=.* are both given: .* of {long}.*leave {name} away"
    )
    with pytest.raises(ValueError, match=message):
        fit(**given, **{name: value})
    assert not (tmp_path / "run").exists()


def test_every_short_form_is_tried_above():
    (mark,) = test_a_short_form_beside_its_group.pytestmark
    assert {case[0] for case in mark.args[1]} == set(Short.__annotations__)


@pytest.mark.parametrize(
    "name, message",
    [
        ("num_epoch", "fit has no argument num_epoch=: did you mean num_epochs="),
        ("ema_deca", "did you mean ema_decay="),
        ("checkpoints_every", "did you mean checkpoint_every="),
        ("eps", "the radius belongs to the threat"),
        ("zzz", "it has model, .* on_epoch, progress, validation_attack, .*ema_decay"),
    ],
)
def test_a_misspelt_name(name, message):
    data, options = arguments()
    if name == "num_epoch":
        del options["num_epochs"]
    with pytest.raises(TypeError, match=message):
        training.fit(*data, **options, **{name: 1})


def test_the_signature_is_that_of_fit():
    parameters = list(inspect.signature(training.fit).parameters)
    assert len(parameters) == 21 and parameters[-1] == "short"
    assert typing.get_type_hints(Short).keys() == Short.__annotations__.keys()


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: Validation(X, Y, attack=ATTACK),
            ValueError,
            r"Validation\(attack=\) n",
        ),
        (
            lambda: Validation(None, None, attack=ATTACK),
            ValueError,
            "needs the examples",
        ),
        (
            lambda: Validation(X, Y, attack=jr.PGD(loss=jr.losses.kl), threat=THREAT),
            TypeError,
            r"Validation\(attack=\).* takes",
        ),
        (
            lambda: Validation(X, Y, batch_size=0),
            ValueError,
            r"Validation\(batch_size=0",
        ),
        (lambda: fit(validation=Validation(None, None)), TypeError, "has no examples"),
        (lambda: fit(validation=Validation(X, None)), TypeError, "labels are of type"),
        (lambda: Checkpoints("out", every=0), ValueError, r"Checkpoints\(every=0\)"),
        (
            lambda: Checkpoints("out", every=2.0),
            ValueError,
            r"Checkpoints\(every=2.0\)",
        ),
    ],
)
def test_misuse_of_a_group(make, error, message):
    with pytest.raises(error, match=message):
        make()
