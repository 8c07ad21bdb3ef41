"""Several threats at once: each row is the evaluation alone, the union is their `and`."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust.evaluation.queue import _slots
from tests.problems import KEY, MODEL, PGD, RESTARTS, N, X, Y

# Of other features each, so that they break other examples.
THREATS = [
    jr.Linf(0.2, mask=np.arange(6) < 3),
    jr.L2(0.2, mask=np.arange(6) >= 3),
]
OPTIONS = dict(key=KEY, batch_size=8, progress=False)


def evaluate(attack=PGD, threat=THREATS, **options):
    return jr.evaluate(MODEL, X, Y, attack=attack, threat=threat, **OPTIONS | options)


def assert_same(a, b):
    """Equal to the last bit, costs included."""
    for name in ("x_adv", "broken_by", "loss_adv", "distance"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.summary() == b.summary()


@pytest.fixture(scope="module")
def union():
    return evaluate()


def test_each_row_is_the_evaluation_alone(union):
    """Nothing is skipped that another threat has broken, and the keys are the same."""
    for report, threat in zip(union.reports, THREATS, strict=True):
        assert_same(report, evaluate(threat=threat))
    linf, l2 = (report.is_robust for report in union.reports)
    assert (linf & ~l2).any() and (l2 & ~linf).any()  # else this would show nothing
    np.testing.assert_array_equal(union.is_robust, linf & l2)
    assert union.robust_accuracy == (linf & l2).mean()
    assert union.average_accuracy == pytest.approx((linf.mean() + l2.mean()) / 2)
    assert union.robust_interval == jr.evaluation.wilson(int((linf & l2).sum()), N)


@pytest.mark.slow
def test_an_attack_for_each_threat(union):
    """Tuples as lists; the table names the attacks."""
    attacks = (jr.FGSM(), PGD)
    several = evaluate(attacks, tuple(THREATS))
    assert_same(several.reports[0], evaluate(jr.FGSM(), THREATS[0]))
    assert_same(several.reports[1], union.reports[1])
    assert "FGSM()" in str(several).splitlines()[2]


def test_a_linear_model_in_closed_form():
    """The union is the smaller of the two margins."""
    w = jnp.array([[1.0, -1.0], [0.5, -0.5]])
    x = np.linspace(-1, 1, 20, dtype=np.float32)[:, None] * np.array([[1, 0.2]])
    x, y = x.astype(np.float32), (x @ np.asarray(w)).argmax(-1)
    threats = [jr.Linf(0.2, bounds=None), jr.L2(0.28, bounds=None)]
    union = jr.evaluate(
        lambda x: x @ w, x, y, attack=jr.FGSM(), threat=threats, progress=False
    )
    margin = np.abs(x @ np.array([1.0, 0.5]))
    largest = [0.2 * 1.5, 0.28 * np.sqrt(1.25)]
    for report, lost in zip(union.reports, largest, strict=True):
        np.testing.assert_array_equal(report.is_robust, margin > lost)
    np.testing.assert_array_equal(union.is_robust, margin > max(largest))


def test_the_table_and_the_files(union, tmp_path):
    text = str(union)
    width = max(len(report.settings["threat"]) for report in union.reports)
    for report in union.reports:
        assert f"  {100 * report.robust_accuracy:.2f}%" in text
        assert report.settings["threat"] in text
    assert f"all of them{' ' * (width - 9)}{100 * union.robust_accuracy:.2f}%" in text
    union.save(tmp_path, pictures=False)
    saved = json.loads((tmp_path / "union.json").read_text())
    assert saved["robust_accuracy"] == union.robust_accuracy
    assert (tmp_path / "1-Linf" / "report.json").exists()
    assert (tmp_path / "2-L2" / "report.npz").exists()
    assert union.citation().count("{madry2018,") == 1


@pytest.mark.slow
@pytest.mark.thin
@pytest.mark.parametrize("num_rounds", [5, 40])
def test_killed_and_resumed(tmp_path, monkeypatch, num_rounds):
    """Under the first threat and under the second, whose turn comes later."""

    class Stop(Exception):
        pass

    advance, count = _slots._advance, iter(range(num_rounds))

    def limited(*args, **kwargs):
        if next(count, None) is None:
            raise Stop
        return advance(*args, **kwargs)

    file = tmp_path / "state.npz"
    with monkeypatch.context() as context, pytest.raises(Stop):
        context.setattr(_slots, "_advance", limited)
        evaluate(RESTARTS, state_file=file, save_every=0.0)
    names = sorted(path.name for path in tmp_path.glob("*.npz"))
    assert names == ["state-1.npz", "state-2.npz"][: 1 + (num_rounds > 35)]
    resumed = evaluate(RESTARTS, state_file=file)
    for a, b in zip(resumed.reports, evaluate(RESTARTS).reports, strict=True):
        assert_same(a, b)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "attack, threat, message",
    [
        (PGD, [], "empty list"),
        ([PGD], THREATS, r"1 attacks and 2 threats.*WorstOf"),
        (PGD, [jr.Linf(0.1), 0.1], "not a threat"),
        (PGD, [jr.Linf(0.1), jr.Linf(np.full(3, 0.1))], "one for each of the 30"),
    ],
)
def test_misuse(attack, threat, message, monkeypatch):
    """Of the last threat too, before the first is attacked."""
    monkeypatch.setattr(_slots, "_advance", None)
    with pytest.raises((ValueError, TypeError), match=message):
        evaluate(attack, threat)


def test_random_models_are_refused():
    model = jr.randomized(lambda x, key: MODEL(x), key=KEY)
    with pytest.raises(ValueError, match="once for each threat"):
        jr.evaluate(model, X, Y, attack=PGD, threat=THREATS, **OPTIONS)
