"""The fast evaluation: who goes on, and that nothing else decides a result."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust.attacks import fast
from jaxrobust.evaluation.queue import _budget
from tests.problems import MODEL, THREAT, N, X, Y

KEYS = jax.random.split(jax.random.key(3), N)
ODI = jr.ODI(num_odi_steps=1, num_steps=3)
SQUARE = jr.Square(num_queries=20, channel_axis=None)


@pytest.fixture
def short(monkeypatch):
    """Fewer steps, and shares that leave some of these 30 examples out."""

    def stages(square):
        del square
        return (
            ("start", jr.Square(num_queries=1, channel_axis=None)),
            ("probe", jr.Square(num_queries=2, channel_axis=None)),
            ("targets", jr.Targets(ODI, 2)),
            ("restarts", jr.Restarts(jr.Targets(ODI, 2), 2)),
            ("square", SQUARE),
        )

    monkeypatch.setattr(fast, "stages", stages)
    monkeypatch.setattr(fast, "_LEAST", 3)
    monkeypatch.setattr(fast, "_MASKED", 0.5)


def evaluate(order=slice(None), **options):
    options = dict(threat=THREAT, attack=jr.autoattack("fast")) | options
    return jr.evaluate(MODEL, X[order], Y[order], key=KEYS[order], **options)


def test_who_goes_on():
    """The nearest of the open ones, by NumPy; all of them where queries find more."""
    rng = np.random.default_rng(0)
    margins = rng.normal(-3, 1, (3, 1000)).astype(np.float32)
    margins[:, :7] = -np.inf  # misclassified: not attacked
    is_open = rng.uniform(size=1000) < 0.8
    is_open[:7] = False
    best = np.where(is_open, margins.max(0), -np.inf)
    for number, share in ((2, 0.3), (3, 0.07), (4, 0.07)):
        count = max(int(np.ceil(share * is_open.sum())), 50)
        nearest = set(np.argsort(-best)[:count])
        admitted = fast.admits(number, jnp.asarray(margins), jnp.asarray(is_open))
        assert set(np.flatnonzero(admitted)) == nearest
    margins[1, 20:30] = 1.0  # 1.007% of 993, by the queries
    admitted = fast.admits(4, jnp.asarray(margins), jnp.asarray(is_open))
    np.testing.assert_array_equal(admitted, is_open)
    for number in (0, 1, 5):  # gradients, queries, the confirmation: all
        admitted = fast.admits(number, jnp.asarray(margins[:0]), jnp.asarray(is_open))
        np.testing.assert_array_equal(admitted, is_open)


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_order_and_batches_change_nothing(monkeypatch):
    """Law 3, of the set: the same points, costs aside."""
    whole = evaluate(batch_size=8)
    assert 0 < whole.is_robust.sum() < whole.is_correct.sum()
    others = evaluate(batch_size=5)
    np.testing.assert_array_equal(others.x_adv, whole.x_adv)
    order = np.random.default_rng(0).permutation(N)
    turned = evaluate(order, batch_size=8)
    np.testing.assert_array_equal(turned.x_adv, whole.x_adv[order])
    np.testing.assert_array_equal(turned.broken_by, whole.broken_by[order])
    # Fewer than without the shares.
    monkeypatch.setattr(fast, "_SHARES", {})
    everyone = evaluate(batch_size=8)
    assert whole.cost["forwards_needed"] < everyone.cost["forwards_needed"]


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_it_says_what_its_own_points_say():
    """Law 10: called as an attack, it breaks what the evaluation breaks."""
    report = evaluate()
    keep = np.flatnonzero(report.is_correct)
    assert set(report.broken_by[keep]) >= {0, 1, 2, 3}  # several stages have a share
    attack = jr.autoattack("fast")
    x_adv = attack(MODEL, X[keep], Y[keep], threat=THREAT, key=KEYS[keep])
    is_robust = np.asarray(MODEL(x_adv)).argmax(-1) == Y[keep]
    np.testing.assert_array_equal(is_robust, report.is_robust[keep])


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_stopped_and_resumed(tmp_path, monkeypatch):
    """To the bit, the margins that decide are in the file."""
    whole, file = evaluate(batch_size=8), tmp_path / "state.npz"
    monkeypatch.setattr(_budget.Budget, "is_over", lambda self: True)
    options = dict(batch_size=8, state_file=file, max_seconds=3600.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it is an upper bound
        while not (report := evaluate(**options)).is_finished:
            assert file.exists()
    np.testing.assert_array_equal(report.x_adv, whole.x_adv)
    assert report.summary()["cost"] == whole.summary()["cost"]


def test_confirmed_by_the_standard_parts():
    parts = jr.autoattack("fast", confirm=True).stages(threat=THREAT)
    assert parts[5:] == jr.autoattack().stages(threat=THREAT)
    assert parts[:5] == jr.autoattack("fast").stages(threat=THREAT)
    with pytest.raises(ValueError, match='only "fast" is confirmed'):
        jr.autoattack(confirm=True)
