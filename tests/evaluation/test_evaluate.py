"""Evaluation: batches, costs, audits and what is counted as robust."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr

N = 7
X = jax.random.uniform(jax.random.key(0), (N, 5))
WEIGHTS = jax.random.normal(jax.random.key(1), (5, 3))
Y = jnp.argmax(X @ WEIGHTS, -1).at[0].add(1) % 3
THREAT = jr.Linf(0.1)


def model(x):
    return jnp.matmul(x, WEIGHTS, precision="highest")


def test_counts_equal_those_of_the_attack():
    """Accuracies are recomputed on the points that the attack returned."""
    report = jr.evaluate(model, X, Y, attack=jr.FGSM(), threat=THREAT)
    x_adv = jr.FGSM()(model, X, Y, threat=THREAT)
    np.testing.assert_array_equal(report.x_adv, x_adv)
    y = np.asarray(Y)
    clean, attacked = (np.asarray(model(v).argmax(-1)) for v in (X, x_adv))
    assert report.clean_accuracy == (clean == y).mean() == 6 / 7
    assert report.adversarial_accuracy == (attacked == y).mean()
    assert report.robust_accuracy == ((attacked == y) & (clean == y)).mean()
    losses = jr.losses.cross_entropy(model(x_adv), Y)
    np.testing.assert_allclose(report.loss_adv, losses, rtol=1e-5)
    assert (report.loss_adv >= report.loss - 1e-6).all()


def test_batch_size_changes_nothing():
    """Law 3: whoever shares the slots, whatever waits; padding is counted as performed."""
    reports = []
    for batch_size in (3, 500):
        report = jr.evaluate(
            model,
            X,
            Y,
            attack=jr.PGD(num_steps=3, random_start=True),
            threat=jr.L2(0.2),
            key=jax.random.key(3),
            batch_size=batch_size,
        )
        assert len(report.y) == len(report.x_adv) == len(report.predicted) == N
        reports.append(report)
    # Programs for other batch sizes may round differently.
    np.testing.assert_allclose(reports[0].x_adv, reports[1].x_adv, atol=1e-5)
    np.testing.assert_array_equal(reports[0].predicted, reports[1].predicted)
    np.testing.assert_array_equal(reports[0].broken_by, reports[1].broken_by)


def test_radius_of_each_example():
    """`eps` may be `[N]`: it is cut into batches like the examples."""
    eps = np.linspace(0.01, 0.2, N).astype(np.float32)
    report = jr.evaluate(
        model,
        X,
        Y,
        attack=jr.FGSM(),
        threat=jr.Linf(eps, bounds=None),
        batch_size=3,
    )
    np.testing.assert_allclose(report.distance, eps, rtol=1e-5)  # inward rounding
    assert report.audit["outside_ball"] == 0


def leaves_ball(fn, x, y, *, threat, key=None):
    return jnp.clip(x + 2 * threat.eps, 0, 1)


def leaves_bounds(fn, x, y, *, threat, key=None):
    return x.at[0, 0].set(1.05).at[0, 1:].set(x[0, 1:])


def leaves_mask(fn, x, y, *, threat, key=None):
    return x.at[:, 0].set(jnp.clip(x[:, 0] - 0.01, 0, 1))


def is_nan(fn, x, y, *, threat, key=None):
    return x.at[0, 0].set(jnp.nan)


@pytest.mark.parametrize(
    "attack, figure",
    [
        (leaves_ball, "outside_ball"),
        (leaves_bounds, "outside_bounds"),
        (leaves_mask, "outside_mask"),
        (is_nan, "not_finite"),
    ],
)
def test_the_audit_finds_a_broken_attack(attack, figure):
    """A bare function is an attack; one that cheats is reported in the table."""
    threat = jr.Linf(0.1, mask=np.array([0, 1, 1, 1, 1]))
    with pytest.warns(UserWarning, match="Not a robust accuracy"):
        report = jr.evaluate(model, X, Y, attack=attack, threat=threat)
    assert report.audit[figure] > 0
    assert "AUDIT" in str(report)
    assert report.cost is None  # a function does not say what it costs


def test_the_audit_of_a_sound_attack_is_clean():
    """Rounding is not reported as cheating."""
    for threat in (jr.Linf(0.1), jr.L2(0.3), jr.L1(0.5)):
        report = jr.evaluate(model, X, Y, attack=jr.FGSM(), threat=threat)
        assert "AUDIT" not in str(report)
        assert report.audit["outside_ball"] == 0


def test_targeted_attack():
    """The attack goes for the targets, accuracy counts true labels."""
    attack = jr.FGSM(loss=jr.losses.targeted(jr.losses.cross_entropy))
    target = (Y + 1) % 3
    report = jr.evaluate(model, X, Y, attack=attack, threat=jr.Linf(0.5), target=target)
    expected = attack(model, X, target, threat=jr.Linf(0.5))
    np.testing.assert_array_equal(report.x_adv, expected)
    np.testing.assert_array_equal(report.y, Y)
