"""The queue: the same decisions as without it, fewer evaluations, nothing compiled twice.

The model is a small MLP on which PGD breaks some examples at once, some late, some
never, so that slots are refilled at different times.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust.evaluation.queue import _slots
from tests.problems import (
    KEY,
    MODEL,
    PGD,
    RESTARTS,
    STEPS,
    THREAT,
    N,
    X,
    Y,
    evaluate,
)


def test_same_decisions_as_the_whole_attack():
    """Leaving early changes what is returned, not what is robust."""
    early, whole = evaluate(), evaluate(stop_early=False)
    assert 0.2 < early.robust_accuracy < 0.8  # otherwise this would show nothing
    np.testing.assert_array_equal(early.is_robust, whole.is_robust)
    np.testing.assert_array_equal(early.x_adv[0], X[0])  # wrong already: left alone
    assert early.audit["not_confirmed"] == early.audit["outside_ball"] == 0


def test_needed_evaluations_are_counted_one_by_one():
    """Needed = for each example, the evaluations up to the first that shows it broken."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(N))
    needed = 0
    for i in np.flatnonzero(MODEL(X).argmax(-1) == Y):
        needed += _evaluations_until_broken(X[i : i + 1], Y[i : i + 1], keys[i])
    report = evaluate()
    assert report.cost["gradients_needed"] == needed
    # The clean points, the points of the stage, and the points of the report.
    num_attacked = int((MODEL(X).argmax(-1) == Y).sum())
    assert report.cost["forwards_needed"] == 2 * N + num_attacked
    assert report.cost["forwards"] >= report.cost["forwards_needed"]


@jax.jit
def _trajectory(x, y, key):
    state = PGD.init(x, y, threat=THREAT, keys=key[None])
    step = lambda state, _: (PGD.step(MODEL, state, threat=THREAT),) * 2  # noqa: E731
    return jax.lax.scan(step, state, length=STEPS + 1)[1].best_broken[:, 0]


def _evaluations_until_broken(x, y, key) -> int:
    count = 0
    for restart in range(3):
        is_broken = np.asarray(_trajectory(x, y, jax.random.fold_in(key, restart)))
        if is_broken.any():
            return count + int(is_broken.argmax()) + 1
        count += STEPS + 1
    return count


def test_slots_are_refilled():
    """One slot performs what is needed; eight slots idle only at the end."""
    one, eight = evaluate(batch_size=1), evaluate()
    # A round is at most six steps, of which the first may break the example.
    wasted = one.cost["gradients"] - one.cost["gradients_needed"]
    assert 0 <= wasted <= 5 * (one.broken_by == 0).sum()
    assert one.cost["gradients_needed"] == eight.cost["gradients_needed"]
    # At most until the last example has gone through all of its restarts.
    idle = eight.cost["gradients"] - eight.cost["gradients_needed"]
    assert 0 <= idle <= 7 * 3 * (STEPS + 1)
    np.testing.assert_array_equal(one.broken_by, eight.broken_by)
    whole = evaluate(stop_early=False).cost["gradients"]
    assert eight.cost["gradients"] < whole / 1.5


def test_the_first_break_is_what_is_returned():
    """The point of a broken example is that of one example alone in one slot."""
    one, eight = evaluate(batch_size=1), evaluate()
    is_broken = one.broken_by == 0
    assert is_broken.any()
    # Programs of different batch sizes round differently, steps multiply it.
    np.testing.assert_allclose(one.x_adv[is_broken], eight.x_adv[is_broken], atol=1e-5)


def test_stages_see_only_what_is_left():
    """`WorstOf` in an evaluation: cheap attacks first, credit to each."""
    weak = jr.FGSM(rel_step_size=0.3)
    attack = jr.WorstOf((weak, PGD, RESTARTS))
    report = evaluate(attack)
    first, second, third = report.credit()
    assert first["new_breaks"] > 0 and second["new_breaks"] > 0
    is_left = MODEL(X).argmax(-1) == Y
    for part in attack.attacks[:1]:
        x_adv = part(MODEL, X, Y, threat=THREAT)
        is_left &= MODEL(x_adv).argmax(-1) == Y
    assert first["robust_accuracy_after"] == pytest.approx(float(is_left.mean()))
    assert third["robust_accuracy_after"] == report.robust_accuracy
    assert second["attack"] in str(report)


@pytest.mark.parametrize("stop_early", [True, False])
def test_individually(stop_early):
    """Alone, every attack sees every example: accuracies as if there were no others."""
    attack = jr.WorstOf((PGD, jr.FGSM()))
    report = evaluate(attack, individually=True, stop_early=stop_early)
    alone = [row["robust_accuracy_alone"] for row in report.credit()]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(N))
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
    assert alone[0] == evaluate(PGD, key=keys).robust_accuracy
    assert alone[1] == evaluate(jr.FGSM()).robust_accuracy
    assert report.robust_accuracy == evaluate(attack).robust_accuracy


def test_radius_of_each_example_follows_it_into_its_slot():
    """`eps [N]`: 0 for the odd ones, which therefore stay as they are."""
    eps = np.where(np.arange(N) % 2, 0.0, 0.1).astype(np.float32)
    report = evaluate(threat=jr.Linf(eps))
    assert (report.distance[1::2] == 0).all()
    whole = evaluate()
    np.testing.assert_array_equal(report.is_robust[::2], whole.is_robust[::2])


@pytest.mark.slow
def test_shrinking(monkeypatch):
    """The last examples move to fewer slots; the outcome is theirs, not the slots'."""
    sizes, rounds = [], []
    advance = _slots._advance

    def spy(*args, **kwargs):
        sizes.append(len(args[3].step))
        rounds.append(args[4])
        return advance(*args, **kwargs)

    attack, threat = jr.Restarts(PGD, 12), jr.Linf(0.2)
    plain = evaluate(attack, batch_size=3, threat=threat)  # 3 is not divided
    monkeypatch.setattr(_slots, "_advance", spy)
    report = evaluate(attack, batch_size=16, threat=threat)
    assert 0 < report.is_robust.sum() <= 4
    assert [size for size, _ in itertools.groupby(sizes)] == [16, 8, 4, 2]
    # A step of few slots is cheap: more than six of them to a round, and no more before.
    longest = {
        n: max(r for s, r in zip(sizes, rounds, strict=True) if s == n) for n in (16, 2)
    }
    assert longest[16] <= 6 < longest[2]
    np.testing.assert_array_equal(report.broken_by, plain.broken_by)


def test_new_numbers_compile_nothing():
    """Another radius, key and data of the same shapes run the compiled programs."""
    from tests.counting import count_compilations

    evaluate()
    with count_compilations() as events:
        evaluate(threat=jr.Linf(0.05), key=jax.random.key(8))
    assert not events


def test_a_batch_iterable():
    """Batches of any sizes are put together."""
    whole = evaluate()
    batches = ((X[i : i + 7], Y[i : i + 7]) for i in range(0, N, 7))
    report = jr.evaluate(
        MODEL, batches, attack=RESTARTS, threat=THREAT, key=KEY, batch_size=8
    )
    np.testing.assert_array_equal(report.x_adv, whole.x_adv)
    with pytest.raises(TypeError, match="needs labels"):
        jr.evaluate(MODEL, X, attack=PGD, threat=THREAT, key=KEY)
    with pytest.raises(ValueError, match="no batches"):
        jr.evaluate(MODEL, [], attack=PGD, threat=THREAT, key=KEY)


def test_groups():
    """Accuracy per group, by hand."""
    groups = np.arange(N) % 4
    report = evaluate(groups=groups)
    for row in report.per_group():
        chosen = groups == row["group"]
        assert row["count"] == chosen.sum()
        assert row["robust_accuracy"] == report.is_robust[chosen].mean()
    with pytest.raises(ValueError, match=r"one value for each of the 30"):
        evaluate(groups=groups[:3])


def test_confusion_counts_every_example_once():
    """Rows are true classes; the diagonal is what is robust."""
    report = evaluate()
    confusion = report.confusion()
    np.testing.assert_array_equal(confusion.sum(1), np.bincount(Y, minlength=3))
    assert np.trace(confusion) == report.is_robust.sum()


def test_a_batch_size_that_makes_no_sense():
    """Zero slots would wait for ever."""
    with pytest.raises(ValueError, match="batch_size=0"):
        evaluate(batch_size=0)


def test_a_last_iterate_is_not_the_best_one():
    """`keep_best=False` asks for the last iterate: nothing may leave early."""
    last = dataclasses.replace(PGD, keep_best=False)
    report, whole = evaluate(last), evaluate(last, stop_early=False)
    np.testing.assert_array_equal(report.x_adv, whole.x_adv)


def test_a_break_that_is_not_confirmed_stays_open(monkeypatch):
    """The next attack gets what only the program of the steps has seen broken."""
    from jaxrobust.evaluation.queue import _forward

    attack = jr.WorstOf((PGD, RESTARTS))
    before = evaluate(attack)
    over_batches = _forward.over_batches
    calls = []

    def doubtful(function, arrays, placing, size, unpack=False):
        result = over_batches(function, arrays, placing, size, unpack)
        if not unpack and isinstance(result, tuple):  # of a stage's points
            calls.append(len(result[0]))
            if len(calls) == 1:  # the breaks of the first stage
                result = tuple(map(np.zeros_like, result))
        return result

    monkeypatch.setattr(_forward, "over_batches", doubtful)
    report = evaluate(attack)
    first, second = report.credit()
    claimed = before.credit()[0]["new_breaks"]
    assert first["new_breaks"] == 0 and report.audit["not_confirmed"] == claimed > 0
    assert second["new_breaks"] >= before.credit()[0]["new_breaks"]
    np.testing.assert_array_equal(report.is_robust, before.is_robust)


def test_the_goal_of_a_wrapped_targeted_attack():
    """A restarted targeted attack is judged by its target, also when it is not queued."""
    target = (Y + 1) % 3
    loss = jr.losses.targeted(jr.losses.cross_entropy)
    attack = jr.Restarts(jr.FGSM(loss=loss, random_start=True), 2)
    report = evaluate(attack, target=target)
    np.testing.assert_array_equal(report.reached, report.predicted_adv == target)
    assert report.reached.any() and not report.reached.all()
    # Broken is what is not the label, the target or not.
    np.testing.assert_array_equal(report.broken_by == 0, report.predicted_adv != Y)


@pytest.mark.parametrize(
    "options, advice",
    [
        ({"threat": jr.Linf(np.full(31, 0.1))}, "one for each of the 30"),
    ],
)
def test_misuse(options, advice):
    """Said before hours have gone by."""
    with pytest.raises(ValueError, match=advice):
        evaluate(**options)
