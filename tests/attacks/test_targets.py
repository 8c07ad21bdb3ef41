"""Runs over targets and restarts, by the wrappers and item by item."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust.attacks.pgd import is_better

pytestmark = pytest.mark.thin

BATCH, FEATURES = 4, 6
WEIGHTS = 2 * jax.random.normal(jax.random.key(3), (FEATURES, 5))
X = jax.random.uniform(jax.random.key(1), (BATCH, FEATURES))
THREAT = jr.Linf(0.1)
KEY = jax.random.key(0)
APGD_T = jr.APGD(num_steps=4, loss=jr.losses.dlr_targeted)


def model_of(classes):
    return jax.tree_util.Partial(smooth, WEIGHTS[:, :classes])


def smooth(weights, x):
    return jnp.sin(3 * x @ weights)


def labels(classes):
    """Mostly the predicted class; the first example is misclassified already."""
    logits = model_of(classes)(X)
    return jnp.argmax(logits, -1).at[0].set(jnp.argmin(logits[0]))


NESTED = {
    "plain": jr.PGD(num_steps=3),
    "restarts": jr.Restarts(jr.APGD(num_steps=4), 2),
    "targets_restarts": jr.Targets(jr.Restarts(APGD_T, 2), 3),
    "restarts_targets": jr.Restarts(jr.Targets(APGD_T, 3), 2, loss=jr.losses.margin),
}


@pytest.mark.parametrize("name", NESTED)
def test_items_are_the_runs_of_the_wrapper(name):
    """The best of all items, each stepped by hand, is what the wrapper returns.

    In another program XLA may round differently, which a few smooth steps amplify little.
    """
    attack, model, y = NESTED[name], model_of(5), labels(5)
    keys = jax.random.split(KEY, BATCH)
    machine = attack.machine

    @jax.jit
    def run_item(item):
        """Every example takes another item: `item + i` for example i."""
        count = attack.num_items(5)
        item = (item + jnp.arange(BATCH)) % count
        state = attack.init_item(X, y, model(X), item, threat=THREAT, keys=keys)
        state = machine.scan(model, state, THREAT)
        x_adv = machine.outcome(state, threat=THREAT).x_adv
        logits = model(x_adv)
        return item, x_adv, jr.losses.margin(logits, y), logits.argmax(-1) != y

    best_loss, best_broken = jnp.full(BATCH, -jnp.inf), jnp.zeros(BATCH, bool)
    seen, points = [], []
    for k in range(attack.num_items(5)):
        item, x_adv, loss, is_broken = run_item(k)
        seen.append(item)
        points.append(x_adv)
        better = is_better(is_broken, loss, best_broken, best_loss)
        best_loss = jnp.where(better, loss, best_loss)
        best_broken = jnp.where(better, is_broken, best_broken)
    assert (np.sort(seen, axis=0) == np.arange(len(seen))[:, None]).all()
    if name == "restarts":  # it compares by the attack's own loss
        attack = jr.Restarts(attack.attack, 2, loss=jr.losses.margin)
    whole = attack(model, X, y, threat=THREAT, key=keys)
    np.testing.assert_array_equal(model(whole).argmax(-1) != y, best_broken)
    # Every example's result is that of one of its items.
    distance = np.abs(np.stack(points) - np.array(whole)).max(-1).min(0)
    assert (distance < 1e-4).all(), distance
    if name != "targets_restarts":  # there the restarts compare by the targeted loss
        reached = jr.losses.margin(model(whole), y)
        np.testing.assert_allclose(reached, best_loss, rtol=0, atol=2e-4)


def test_item_order():
    """The outermost wrapper counts slowest: AutoAttack goes target by target."""
    logits, y = jnp.array([[5.0, 1.0, 4.0, 3.0]] * 4), jnp.array([0, 0, 2, 1])
    x, keys = jnp.full((4, FEATURES), 0.5), jax.random.split(KEY, 4)

    def init(attack, item):
        item = jnp.full(4, item)
        state = attack.init_item(x, y, logits, item, threat=THREAT, keys=keys)
        assert (state.y[0] == y).all()
        return state.y[1].tolist(), state.x_adv

    expected = [[2, 2, 0, 0], [3, 3, 3, 2], [1, 1, 1, 3]]  # by clean logit, no label
    by_target = jr.Targets(jr.Restarts(APGD_T, 2), 3)
    by_restart = jr.Restarts(jr.Targets(APGD_T, 3), 2)
    for item in range(6):
        assert init(by_target, item)[0] == expected[item // 2]
        assert init(by_restart, item)[0] == expected[item % 3]
    starts = np.stack([init(by_target, item)[1] for item in range(6)])
    assert len(np.unique(starts.round(5), axis=0)) == 6  # every run draws its own start
    # The keys are those of `run`: target 2, then restart 1.
    fold = jax.vmap(jax.random.fold_in, (0, None))
    direct = APGD_T.init(x, (y, y), threat=THREAT, keys=fold(fold(keys, 2), 1))
    np.testing.assert_array_equal(starts[5], direct.x_adv)


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes):
    """With C classes there are C - 1 targets, and the losses fall back."""
    attack, model, y = jr.Targets(APGD_T), model_of(classes), labels(classes)
    assert attack.num_items(classes) == classes - 1
    x_adv = attack(model, X, y, threat=THREAT, key=KEY)
    assert np.isfinite(x_adv).all()
    before, after = (jr.losses.margin(model(x), y) for x in (X, x_adv))
    assert (after > before)[1:].all()
    assert after[0] > 0  # misclassified before, and still


@pytest.mark.slow
def test_targets_break_what_one_target_does_not():
    """A linear model, where each target has its own exact optimum."""
    weights = jnp.array([[1.0, 0.95, 0.0], [0.0, 0.0, 1.0]])
    model = jax.tree_util.Partial(lambda w, x: x @ w, weights)
    # Class 1 is nearer in logits but moves with class 0; class 2 is what breaks it.
    x, y = jnp.array([[0.5, 0.3]]), jnp.array([0])
    threat = jr.Linf(0.15)
    margins = []
    for num_targets in (1, 2):
        attack = jr.Targets(APGD_T, num_targets)
        x_adv = attack(model, x, y, threat=threat, key=KEY)
        margins.append(float(jr.losses.margin(model(x_adv), y)[0]))
    # 0.05 * (0.5 - 0.15) short of class 1; (0.3 + 0.15) - (0.5 - 0.15) beyond class 2.
    np.testing.assert_allclose(margins[1], 0.10, atol=1e-6)  # float32 rounding
    assert margins[0] <= margins[1]


def test_cost():
    """Nine runs of 5 gradients and a forward pass, and one for the clean logits."""
    assert jr.Targets(APGD_T).total_cost() == (45, 10)
    assert jr.Targets(lambda *_, **__: None).total_cost() is None
    assert repr(jr.Targets(APGD_T, 3)) == (
        "Targets(APGD(num_steps=4, loss=dlr_targeted), num_targets=3)"
    )


def test_impossible_settings():
    with pytest.raises(ValueError, match="whole number"):
        jr.Targets(APGD_T, 0)
