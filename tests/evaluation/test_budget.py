"""`max_seconds`: what is said when the time is over is a bound, and is said to be one."""

import json
import warnings

import jax
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust.evaluation.queue import _budget
from tests.problems import KEY, MODEL, PGD, THREAT, N, X, Y

# In batches, then on slots.
ATTACK = jr.WorstOf((jr.FGSM(rel_step_size=0.3), PGD, jr.Restarts(PGD, 2)))
OPTIONS = dict(attack=ATTACK, threat=THREAT, key=KEY, batch_size=8, progress=False)
OPTIONS |= dict(max_seconds=3600.0)


def evaluate(model=MODEL, **options):
    return jr.evaluate(model, X, Y, **OPTIONS | options)


def stop_after(context, num_rounds):
    """Let the time be over after so many rounds."""
    count = iter(range(num_rounds - 1))
    context.setattr(_budget.Budget, "is_over", lambda self: next(count, None) is None)


def assert_same(a, b):
    """Equal to the last bit, costs included."""
    for name in ("x_adv", "broken_by", "loss_adv", "distance"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.summary() == b.summary()


@pytest.fixture(scope="module")
def whole():
    return evaluate()


def check_bound(report, whole):
    """What is decided is what the whole run says; the rest counts as robust."""
    decided = ~report.undecided
    np.testing.assert_array_equal(report.is_robust[decided], whole.is_robust[decided])
    assert report.is_robust[report.undecided].all() and report.undecided.any()
    assert report.robust_accuracy >= whole.robust_accuracy
    low, high = report.robust_interval
    assert low <= whole.robust_accuracy <= high
    # Law 10: the points say the same.
    predicted = np.asarray(MODEL(report.x_adv)).argmax(-1)
    np.testing.assert_array_equal(report.predicted_adv, predicted)


@pytest.mark.slow
@pytest.mark.thin
@pytest.mark.parametrize("num_rounds", [1, 13])
def test_stopped_again_and_again(tmp_path, monkeypatch, whole, num_rounds):
    """After each batch or round; in the end the bits of a run that was not stopped."""
    file, bounds, seen = tmp_path / "state.npz", [], set()
    for _ in range(100):
        with monkeypatch.context() as context:
            stop_after(context, num_rounds)
            report = _quietly(state_file=file, save_every=3600.0)
        if report.is_finished:
            break
        check_bound(report, whole)
        bounds.append(report.robust_accuracy)
        seen.add(report.num_finished)
    assert_same(report, whole)
    assert bounds == sorted(bounds, reverse=True) and len(seen) > 1
    assert not file.exists()


def _quietly(**options):
    with warnings.catch_warnings(action="ignore"):
        return evaluate(**options)


def test_it_is_said_everywhere(tmp_path, monkeypatch):
    """Warning, table, JSON, arrays; no record for a board."""
    stop_after(monkeypatch, 8)
    with pytest.warns(
        UserWarning, match=r"max_seconds.*upper bounds.*begins again"
    ) as w:
        report = evaluate()
    assert w[0].filename == __file__
    assert isinstance(report, jr.evaluation.PartialReport)
    count = int(report.undecided.sum())
    assert "not finished: an upper bound" in str(report).splitlines()[4]
    assert f"{count} of {N} examples undecided" in str(report)
    report.save(tmp_path, pictures=False)
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["is_finished"] is False and saved["num_undecided"] == count
    arrays = np.load(tmp_path / "report.npz")
    np.testing.assert_array_equal(arrays["undecided"], report.undecided)
    from jaxrobust.plotting import pictures

    assert "not finished" in pictures.heading(report, None, 80)
    with pytest.raises(ValueError, match="has not finished"):
        report.robustbench("a model")
    with pytest.warns(UserWarning, match="goes on from the state_file"):
        evaluate(state_file=tmp_path / "state.npz")


def test_nothing_is_said_of_attacks_that_have_not_run(monkeypatch, whole):
    """Nor of what one did alone that has not ended."""
    attacks = [row["attack"] for row in whole.credit()]
    for num_rounds, num_begun, num_finished in ((4, 1, 1), (5, 2, 1)):
        with monkeypatch.context() as context:
            stop_after(context, num_rounds)
            report = _quietly(individually=True)
        rows = report.credit()
        assert [row["attack"] for row in rows] == attacks[:num_begun]
        finished = [row["is_finished"] for row in rows]
        assert finished == [True] * num_finished + [False] * (num_begun - num_finished)
        for row in rows:
            assert ("robust_accuracy_alone" in row) == row["is_finished"]


def test_the_clock(whole):
    """One round at least, however short the time; none is stopped that has enough."""
    assert whole.is_finished and not whole.undecided.any()
    assert whole.summary()["num_undecided"] == 0
    report = _quietly(max_seconds=1e-9)
    assert not report.is_finished and report.cost["gradients"] > 0


@pytest.mark.slow
def test_several_threats(tmp_path, monkeypatch):
    """For all together: those that had no time are undecided, and so is the union."""
    options = dict(attack=PGD, threat=[THREAT, jr.L2(0.1)])
    whole = evaluate(**options)
    file = tmp_path / "state.npz"
    with monkeypatch.context() as context:
        # What is over stays over.
        rounds = iter(range(20))
        context.setattr(
            _budget.Budget, "is_over", lambda self: next(rounds, None) is None
        )
        union = _quietly(**options, state_file=file)
    first, second = union.reports
    assert_same(first, whole.reports[0])
    check_bound(second, whole.reports[1])
    assert not union.is_finished and union.summary()["is_finished"] is False
    np.testing.assert_array_equal(union.undecided, first.is_robust & second.undecided)
    assert str(union).count("not finished: an upper bound") == 2
    assert len(list(tmp_path.iterdir())) == 2
    resumed = evaluate(**options, state_file=file)
    for a, b in zip(resumed.reports, whole.reports, strict=True):
        assert_same(a, b)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_random_models(tmp_path, monkeypatch):
    """Between two batches: every example that was not attacked to the end is undecided."""
    model = jr.randomized(
        lambda x, key: MODEL(x + 0.1 * jax.random.normal(key, x.shape)), key=KEY
    )
    options = dict(attack=jr.WorstOf((jr.FGSM(), jr.FGSM(loss=jr.losses.margin))))
    whole, file = evaluate(model, **options), tmp_path / "state.npz"
    for num_rounds, num_undecided in ((2, N), (3, 22), (3, 0)):
        with monkeypatch.context() as context:
            stop_after(context, num_rounds)
            report = _quietly(model=model, **options, state_file=file)
        assert report.undecided.sum() == num_undecided
        assert report.is_finished == (num_undecided == 0)
    assert_same(report, whole)
    np.testing.assert_array_equal(report.share_after, whole.share_after)


def test_misuse():
    with pytest.raises(ValueError, match="max_seconds=0: a positive number"):
        evaluate(max_seconds=0)
    options = {k: v for k, v in OPTIONS.items() if k != "attack"}
    with pytest.raises(ValueError, match="nor stop early"):
        jr.evaluation.robustness_curve(MODEL, X, Y, attack=PGD, eps=[0.1], **options)
