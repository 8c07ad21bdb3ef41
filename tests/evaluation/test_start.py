"""Starting points that are given, and balls without a radius."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from tests.problems import KEY, MODEL, THREAT, X, Y

ATTACKS = {
    "pgd": jr.PGD(num_steps=3),
    "apgd": jr.APGD(num_steps=3),
    "fab": jr.FAB(num_steps=3),
    "square": jr.Square(num_queries=5),
    "spsa": jr.SPSA(num_steps=2, num_samples=4),
}


@pytest.mark.thin
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("threat", [jr.Linf(0.1), jr.L2(0.3), jr.L1(0.5)])
def test_every_attack_starts_where_it_is_told(name, threat):
    """`init(start=...)` begins there, drawn into the threat; FAB into the bounds only."""
    x = jnp.full((2, 4), 0.5)
    attack, start = ATTACKS[name], x + jnp.array([[0.05, 0, 0, 0], [9.0, 0, 0, 0]])
    keys = jax.random.split(KEY, 2)
    state = attack.init(x, jnp.zeros(2, int), threat=threat, keys=keys, start=start)
    first = state.proposal if name == "square" else state.x_adv
    np.testing.assert_allclose(first[0], start[0], atol=1e-6)
    # APGD for l_1 begins in a ball of three times the radius.
    wide = threat.with_eps(3 * threat.eps) if threat.order == 1 else threat
    allowed = {"fab": x.at[1, 0].set(1.0), "apgd": wide.project(start, x)}
    expected = allowed.get(name, threat.project(start, x))
    np.testing.assert_allclose(first[1], expected[1], atol=1e-6)


@pytest.mark.parametrize("num_restarts", [1, 2])
def test_an_evaluation_goes_on_from_a_report(num_restarts):
    """Points that are broken already are found at the first look at them."""
    attack = jr.PGD(num_steps=20)
    strong = jr.evaluate(MODEL, X, Y, attack=attack, threat=THREAT, key=KEY)
    weak = dataclasses.replace(attack, num_steps=1, rel_step_size=1e-6)
    weak = jr.Restarts(weak, num_restarts) if num_restarts > 1 else weak
    settings = dict(attack=weak, threat=THREAT, key=KEY)
    again = jr.evaluate(MODEL, X, Y, start=strong.x_adv, **settings)
    assert 0 < strong.is_robust.mean() < strong.is_correct.mean()
    assert (again.is_robust <= strong.is_robust).all()
    without = jr.evaluate(MODEL, X, Y, **settings)
    assert without.is_robust.sum() > again.is_robust.sum()


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(attack=jr.FGSM(), start=X), "not for FGSM"),
        (dict(attack=jr.PGD(), start=X, stop_early=False), "not for PGD"),
        (dict(attack=jr.PGD(), start=X[:2]), "one finite point for each"),
        (dict(attack=jr.PGD(), start=np.nan * X), "one finite point for each"),
    ],
)
def test_misuse(settings, message):
    with pytest.raises(ValueError, match=message):
        jr.evaluate(MODEL, X, Y, threat=THREAT, key=KEY, **settings)


@pytest.mark.thin
@pytest.mark.parametrize("kind", [jr.Linf, jr.L2, jr.L1])
def test_the_distance_to_the_boundary_of_a_linear_model(kind):
    """Law 2 for minimum norm: FAB at whatever distance, |gap| over the dual norm of w."""
    weights = np.array([[1.0, 0.0], [0.0, 2.0], [0.5, 0.0]], np.float32)
    x = np.array([[0.9, 0.1, 0.6], [0.4, 0.5, 0.5], [5.0, 0.0, 1.0]], np.float32)
    model, y = (lambda x: x @ weights), (x @ weights).argmax(-1)
    threat = kind(np.inf, bounds=None)
    attack = jr.FAB(num_steps=20, eta=1.001)  # the overshoot
    report = jr.evaluate(model, x, y, attack=attack, threat=threat)
    dual = {jr.Linf: 1, jr.L2: 2, jr.L1: np.inf}[kind]
    w = weights[:, 0] - weights[:, 1]
    expected = np.abs(x @ w) / np.linalg.norm(w, dual)
    assert report.robust_accuracy == 0
    np.testing.assert_allclose(report.distance, expected, rtol=2e-3)
    state = attack.scan(model, attack.init(x, y, threat=threat, keys=None), threat)
    found = attack.outcome(state, threat=threat)
    np.testing.assert_allclose(found.distance, expected, rtol=2e-3)
    assert np.isfinite(found.x_adv).all() and found.is_broken.all()


@pytest.mark.parametrize(
    "attack",
    [jr.FAB(num_steps=3), jr.Targets(jr.FAB(num_steps=3, targeted=True))],
    ids=["fab", "fab_t"],
)
def test_where_there_is_no_boundary_nothing_is_found(attack):
    """A constant model is robust at whatever distance, not broken at infinity."""

    def constant(x):
        return jnp.array([[3.0, 0.0, 0.0]]) + 0 * x[:, :1]

    x, y = jnp.full((2, 4), 0.5), jnp.zeros(2, int)
    report = jr.evaluate(constant, x, y, attack=attack, threat=jr.L2(np.inf))
    assert report.robust_accuracy == 1 and (report.distance == 0).all()
    assert report.audit["not_confirmed"] == 0  # it has not said so either
    item, machine, threat = jnp.zeros(2, int), attack.machine, jr.L2(np.inf)
    state = attack.init_item(x, y, constant(x), item, threat=threat, keys=None)
    found = machine.outcome(machine.scan(constant, state, threat), threat=threat)
    assert np.isinf(found.distance).all() and not found.is_broken.any()


@pytest.mark.parametrize(
    "attack",
    [jr.FGSM(), jr.PGD(), jr.Restarts(jr.PGD(), 2), jr.autoattack(), jr.Square()],
)
def test_steps_need_a_radius(attack):
    with pytest.raises(ValueError, match="units of eps, which is infinite"):
        jr.evaluate(MODEL, X, Y, attack=attack, threat=jr.Linf(np.inf), key=KEY)
    with pytest.raises(ValueError, match="units of eps, which is infinite"):
        attack(MODEL, X, Y, threat=jr.L2(np.inf), key=KEY)
