"""Random models: what is reported is what the points are worth on the next draws."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import jaxrobust as jr
from jaxrobust.evaluation.queue import _random

pytestmark = pytest.mark.thin

N, D, SIGMA, EPS = 100, 20, 0.5, 0.1
KEY = jax.random.key(3)
W = np.asarray(jax.random.normal(jax.random.key(0), (D,))) / math.sqrt(D)
X = np.asarray(jax.random.normal(jax.random.key(1), (N, D)))
Y = (X @ W > 0).astype(int)
THREAT = jr.Linf(EPS, bounds=None)


def linear(weights, x, key):
    """One score of an input with noise, as two logits."""
    noise = SIGMA * jax.random.normal(key, x.shape)
    score = jnp.matmul(x + noise, weights, precision="highest")
    return jnp.stack([0 * score, score], -1)


MODEL = jr.randomized(
    jax.tree_util.Partial(linear, jnp.asarray(W)),
    key=KEY,
    num_samples=8,
    num_deployed=1,
)


def worth(x, num_draws=1):
    """The accuracy at `x` of the mean of some draws, in closed form."""
    score = (2 * Y - 1) * (x @ W)
    return norm.cdf(score * math.sqrt(num_draws) / (SIGMA * np.linalg.norm(W)))


def best_points():
    return X - EPS * (2 * Y - 1)[:, None] * np.sign(W)


def evaluate(model=MODEL, attack=None, **options):
    attack = jr.PGD(num_steps=10) if attack is None else attack
    options = {"threat": THREAT, "key": jax.random.key(4), "progress": False} | options
    return jr.evaluate(model, X, Y, attack=attack, **options)


def function(logits_fn, x, y, *, threat, key=None):
    """An attack that the library knows nothing of."""
    return jr.FGSM()(logits_fn, x, y, threat=threat, key=key)


PGD = jr.PGD(num_steps=10)
OPTIMAL = {
    "PGD": PGD,
    "last": jr.PGD(num_steps=10, keep_best=False),
    "restarts": jr.Restarts(PGD, 2),
    "APGD": jr.APGD(num_steps=10),
    "worst": jr.WorstOf((function, jr.PGD(num_steps=10, loss=jr.losses.margin))),
    "FGSM": jr.FGSM(loss=jr.losses.expected(jr.losses.margin)),
}
OTHERS = {
    "Square": jr.Square(num_queries=100),
    "SPSA": jr.SPSA(num_steps=5, num_samples=8, delta=0.1),
    "FAB-T": jr.Targets(jr.FAB(num_steps=5, targeted=True), 1),
}


@pytest.mark.parametrize(
    "name",
    [
        name if name == "PGD" else pytest.param(name, marks=pytest.mark.slow)
        for name in OPTIMAL
    ],
)
def test_attacks_reach_the_optimum_and_no_more(name):
    """Between Phi(margin / sigma) of the best points and luck there is no confusion."""
    report = evaluate(attack=OPTIMAL[name])
    optimum = worth(best_points()).mean()  # 0.728; PGD reported 0.640, worth 0.787
    assert abs(report.clean_accuracy - worth(X).mean()) < 0.02
    assert abs(report.robust_accuracy - worth(report.x_adv).mean()) < 0.02
    assert abs(report.robust_accuracy - optimum) < 0.025
    low, high = report.summary()["robust_interval"]
    assert low < optimum < high


def test_luck_is_told_apart():
    """A ball of almost no size: what the attack claims is luck, and the points say so.

    One look at the clean point and 11 at those of PGD, all with new draws: an example is
    left by the attack's word with chance Phi ** 12, in closed form.
    """
    model = dataclasses.replace(MODEL, num_samples=1)
    attack = jr.PGD(num_steps=10, rel_step_size=0.01)
    report = evaluate(model, attack, threat=jr.Linf(1e-3, bounds=None))
    assert abs(report.robust_accuracy - worth(X).mean()) < 0.02
    # A share of N examples, by three of its standard errors.
    expected = (worth(X) ** 12).mean()
    error = math.sqrt(expected * (1 - expected) / N)
    assert abs(report.claimed_accuracy - expected) < 3 * error
    assert report.claimed_accuracy < report.robust_accuracy - 0.3
    assert report.summary()["claimed_accuracy"] == report.claimed_accuracy
    assert f"claimed   {100 * report.claimed_accuracy:.2f}%" in str(report)


@pytest.mark.slow
def test_rand():
    """AutoAttack's version for random models: two stages, each on the expected loss."""
    report = evaluate(attack=jr.autoattack("rand"))
    assert abs(report.robust_accuracy - worth(report.x_adv).mean()) < 0.02
    assert abs(report.robust_accuracy - worth(best_points()).mean()) < 0.025


def test_rand_takes_the_loss_of_each_draw():
    losses = [part.loss for _, part in jr.autoattack("rand").stages(threat=THREAT)]
    assert losses == [
        jr.losses.expected(loss) for loss in (jr.losses.cross_entropy, jr.losses.dlr)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_weaker_attacks_say_what_their_points_are_worth(name):
    report = evaluate(attack=OTHERS[name])
    assert abs(report.robust_accuracy - worth(report.x_adv).mean()) < 0.02
    assert report.robust_accuracy < report.clean_accuracy


@pytest.mark.slow
def test_a_prediction_averages_as_many_draws_as_are_deployed():
    model = dataclasses.replace(MODEL, average="logits", num_deployed=None)
    report = evaluate(model, jr.FGSM())
    assert abs(report.clean_accuracy - worth(X, 8).mean()) < 0.02
    assert abs(report.robust_accuracy - worth(best_points(), 8).mean()) < 0.04


@pytest.mark.slow
def test_two_networks_at_random():
    """The one of two that can be broken is broken: half of the draws are left."""
    weights = jnp.array([[10.0, 0.0], [0.0, 1.0]])

    def model_fn(x, key):
        score = x @ weights[jax.random.bernoulli(key).astype(int)]
        return jnp.stack([score, -score], -1)

    model = jr.randomized(model_fn, key=KEY, num_deployed=1)
    x = np.array([[1.0, 0.3]], np.float32) + np.linspace(0, 0.05, 20)[:, None]
    report = jr.evaluate(
        model, x, np.zeros(20, int), attack=PGD, threat=jr.L2(0.4, bounds=None), key=KEY
    )
    assert report.clean_accuracy == 1
    assert abs(report.robust_accuracy - 0.5) < 0.1


def test_the_report_is_consistent(tmp_path):
    """Classes, groups, credit, confusion and files tell the same means."""
    attack = jr.WorstOf((jr.FGSM(), PGD))
    report = evaluate(attack=attack, groups=np.arange(N) % 3)
    assert report.draws.shape == report.draws_adv.shape == (N, 20)
    robust = report.robust_accuracy
    np.testing.assert_allclose(robust, (report.draws_adv == Y[:, None]).mean())
    for rows in (report.per_class(), report.per_group()):
        sums = [row["count"] * row["robust_accuracy"] for row in rows]
        np.testing.assert_allclose(sum(sums) / N, robust)
    first, last = report.credit()
    np.testing.assert_allclose(last["robust_accuracy_after"], robust)
    lost = N * (report.clean_accuracy - robust)
    np.testing.assert_allclose(first["new_breaks"] + last["new_breaks"], lost)
    np.testing.assert_allclose(np.trace(report.confusion()) / N, robust)
    assert "random model: mean over 20 fresh draws" in str(report)
    report.save(tmp_path, pictures=False)
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["robust_accuracy"] == robust
    assert np.load(tmp_path / "report.npz")["draws_adv"].shape == (N, 20)


def test_targets_reached_are_a_mean():
    attack = jr.PGD(num_steps=5, loss=jr.losses.targeted(jr.losses.cross_entropy))
    report = evaluate(attack=attack, target=1 - Y)
    reached = report.summary()["targets_reached"]
    np.testing.assert_allclose(reached, 1 - report.robust_accuracy)


@pytest.mark.slow
def test_batches_and_interruption_change_nothing(tmp_path, monkeypatch):
    """Law 3: nor does a run that goes on after its first stage."""
    attack = jr.WorstOf((PGD, jr.PGD(num_steps=10, loss=jr.losses.margin)))
    options = dict(attack=attack, batch_size=50)
    whole = evaluate(**options)
    path, run_batch = tmp_path / "state.npz", _random._run_batch

    def interrupted(stage, *rest):
        if stage.number:
            raise KeyboardInterrupt
        return run_batch(stage, *rest)

    monkeypatch.setattr(_random, "_run_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(**options, state_file=path, save_every=0.0)
    monkeypatch.setattr(_random, "_run_batch", run_batch)
    resumed = evaluate(**options, state_file=path)
    other = evaluate(attack=attack)
    for report in (resumed, other):
        np.testing.assert_allclose(report.x_adv, whole.x_adv, atol=1e-6)
        np.testing.assert_array_equal(report.broken_by, whole.broken_by)
        np.testing.assert_allclose(report.share_after, whole.share_after)
    assert resumed.cost == whole.cost and not path.exists()


@pytest.mark.slow
def test_a_curve():
    """Every example at every radius; means of fresh draws."""
    curve = jr.evaluation.robustness_curve(
        MODEL, X, Y, attack=jr.FGSM(), threat=THREAT, eps=[0.05, EPS]
    )
    assert curve.is_robust.shape == (2, N)
    for radius, accuracy in zip((0.05, EPS), curve.robust_accuracy, strict=True):
        best = X - radius * (2 * Y - 1)[:, None] * np.sign(W)
        assert abs(accuracy - worth(best).mean()) < 0.025
    assert "0.05" in str(curve)


def test_fixed_draws_are_a_deterministic_model():
    report = evaluate(dataclasses.replace(MODEL, fixed=True), jr.FGSM())
    assert report.draws is None and (report.robust_share == report.is_robust).all()


@pytest.mark.slow
def test_hidden_randomness_is_warned_of(recwarn):
    """A function that draws inside cannot be asked for fresh draws; others are silent."""
    with pytest.warns(UserWarning, match="draws random numbers") as caught:
        evaluate(lambda x: MODEL(x), jr.FGSM())
    assert caught[0].filename == __file__

    def unused(x):
        jax.random.normal(KEY, x.shape)
        return x[:, :2]

    recwarn.clear()
    evaluate(MODEL, jr.FGSM())
    evaluate(unused, jr.FGSM())
    assert not recwarn.list


def test_individually_is_refused():
    with pytest.raises(ValueError, match="once for each attack"):
        evaluate(attack=jr.WorstOf((jr.FGSM(), PGD)), individually=True)


@pytest.mark.slow
def test_several_devices():
    """Law 3, on a mesh with explicit axes."""
    mesh = jax.make_mesh((4,), ("data",))
    spread, alone = (
        evaluate(attack=jr.FGSM(), batch_size=N, mesh=m) for m in (mesh, None)
    )
    np.testing.assert_array_equal(spread.x_adv, alone.x_adv)
    np.testing.assert_array_equal(spread.draws_adv, alone.draws_adv)
