"""Bounds and masks for each example follow it through the queue; shapes mean one thing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr

pytestmark = pytest.mark.thin

RNG = np.random.default_rng(0)
N = 6
X = RNG.uniform(0.2, 0.8, (N, 4)).astype(np.float32)
W = jnp.asarray(RNG.normal(size=(4, 3)) * 3, jnp.float32)
KEY = jax.random.key(0)


def model(x):
    return (x - 0.5) @ W


Y = np.asarray(model(X)).argmax(-1)
PROTECTED = np.arange(N)[:, None] != 2  # number 2 may not be changed at all
PROTECTED = np.broadcast_to(PROTECTED, X.shape)


@pytest.mark.parametrize("attack", [jr.PGD(num_steps=5), jr.FGSM()])
@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_a_mask_for_each_example(attack, batch_size):
    """Whatever the batch, the protected example alone withstands everything."""
    report = jr.evaluate(
        model,
        X,
        Y,
        attack=attack,
        threat=jr.Linf(1.0, bounds=(-0.5, 1.5), mask=PROTECTED),
        key=KEY,
        batch_size=batch_size,
    )
    np.testing.assert_array_equal(np.flatnonzero(report.is_robust), [2])
    assert report.audit["outside_mask"] == 0
    np.testing.assert_array_equal(report.x_adv[2], X[2])


@pytest.mark.slow
def test_bounds_for_each_example_are_those_of_each_alone():
    """Law 3, for numbers that may only rise: from here to infinity."""
    threat = jr.L2(0.3, bounds=(X, np.inf))
    attack = jr.PGD(num_steps=5, random_start=False)
    report = jr.evaluate(model, X, Y, attack=attack, threat=threat, batch_size=2)
    assert (report.x_adv >= X).all() and report.audit["outside_bounds"] == 0
    for i in range(N):
        alone = jr.L2(0.3, bounds=(X[i], np.inf))
        one = jr.evaluate(
            model, X[i : i + 1], Y[i : i + 1], attack=attack, threat=alone
        )
        # Another batch size is another program.
        np.testing.assert_allclose(one.x_adv[0], report.x_adv[i], atol=1e-6)


def test_a_curve_with_rows():
    threat = jr.Linf(0.1, mask=PROTECTED)
    curve = jr.evaluation.robustness_curve(
        model, X, Y, attack=jr.FGSM(), threat=threat, eps=[0.01, 0.9], batch_size=4
    )
    assert curve.is_robust[:, 2].all() and curve.robust_accuracy[-1] < 1


@pytest.mark.slow
def test_a_diagnosis_with_rows():
    threat = jr.Linf(0.1, mask=PROTECTED)
    diagnosis = jr.diagnose(
        model, X, Y, threat=threat, key=KEY, num_steps=2, num_queries=3
    )
    assert diagnosis["finite_gradients"].verdict == "pass"


IMAGES = RNG.uniform(size=(2, 3, 3, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "shape", [(), (3,), (3, 3, 1), (1, 1, 3), (3, 3, 3), (2, 1, 1, 1), (2, 3, 3, 3)]
)
def test_shapes_that_fit(shape):
    labels = np.zeros(2, int)
    flat = lambda x: x.reshape(len(x), -1)[:, :2]  # noqa: E731
    for threat in (
        jr.Linf(0.1, mask=np.ones(shape)),
        jr.Linf(0.1, bounds=(np.zeros(shape), 1.0)),
    ):
        assert jr.fgsm(flat, IMAGES, labels, threat=threat).shape == IMAGES.shape


@pytest.mark.parametrize("shape", [(3, 3), (3, 1), (2, 3, 3), (5,), (4, 3, 3, 3)])
def test_shapes_that_only_happen_to_broadcast(shape):
    labels = np.zeros(2, int)
    for name, threat in (
        ("mask", jr.Linf(0.1, mask=np.ones(shape))),
        ("the upper bound", jr.Linf(0.1, bounds=(0.0, np.ones(shape)))),
    ):
        with pytest.raises(ValueError, match=rf"{name} has shape .*Write 1 for"):
            jr.fgsm(lambda x: x[:, 0, 0], IMAGES, labels, threat=threat)


@pytest.mark.parametrize(
    "bounds, x, is_allowed",
    [
        ((0.0, np.inf), X, True),
        ((0.0, np.inf), X - 1, False),
        ((-np.inf, 0.5), X, False),
        ((-np.inf, 1.0), X - 300, True),
        ((0.0, 1e9), np.where(X == X[0, 0], -200, X).astype(np.float32), False),
        ((0.0, 1.0), (X - X.min()) / np.ptp(X) * (1 + 1e-7), True),
    ],
)
def test_half_open_and_distant_bounds_are_checked(bounds, x, is_allowed):
    """Each bound by itself: infinity on one side excuses nothing on the other."""
    x = x.astype(np.float32)
    threat = jr.Linf(0.1, bounds=bounds)
    for call in (
        lambda: jr.fgsm(model, x, Y, threat=threat),
        lambda: jr.evaluate(model, x, Y, attack=jr.FGSM(), threat=threat),
    ):
        if is_allowed:
            call()
        else:
            with pytest.raises(ValueError, match="outside the bounds"):
                call()


@pytest.mark.slow
def test_a_diagnosis_within_half_open_bounds():
    threat = jr.Linf(0.1, bounds=(0.0, np.inf))
    jr.diagnose(model, X, Y, threat=threat, key=KEY, num_steps=2, num_queries=3)


def test_a_side_without_a_limit_is_infinite():
    with pytest.raises(ValueError, match=r"bounds=\(0, jnp.inf\)"):
        jr.Linf(0.1, bounds=(0, None))


class Cube:
    """A threat with all that `types.Threat` lists, and not a pytree."""

    bounds, mask, order = (0.0, 1.0), None, None

    def __init__(self, eps):
        self.eps = eps

    def project(self, x_adv, x):
        return jnp.clip(jnp.clip(x_adv, x - self.eps, x + self.eps), 0, 1)

    def steepest(self, grad, x, step_size):
        step_size = jnp.broadcast_to(jnp.asarray(step_size), len(x))
        return step_size[:, None] * jnp.sign(grad)

    def sample(self, keys, x):
        del keys
        return x

    def distance(self, x_adv, x):
        return jnp.max(jnp.abs(x_adv - x), -1)

    def with_eps(self, eps):
        return Cube(eps)


def test_a_threat_of_the_users_own():
    """It takes part in attacks, evaluations and curves; what needs a norm says so."""
    threat = Cube(0.1)
    assert isinstance(threat, jr.types.Threat)
    for attack in (jr.FGSM(), jr.PGD(num_steps=3), jr.APGD(num_steps=3)):
        report = jr.evaluate(model, X, Y, attack=attack, threat=threat, key=KEY)
        assert report.distance.max() <= 0.1 + 1e-6
        assert report.settings["norm"] == "Cube"
    expected = jr.fgsm(model, X, Y, threat=jr.Linf(0.1))
    np.testing.assert_allclose(jr.fgsm(model, X, Y, threat=threat), expected, atol=1e-6)
    curve = jr.evaluation.robustness_curve(
        model, X, Y, attack=jr.FGSM(), threat=threat, eps=[0.01, 0.9]
    )
    assert curve.robust_accuracy[0] > curve.robust_accuracy[1]
    for attack in (jr.FAB(num_steps=2), jr.Square(num_queries=2)):
        with pytest.raises(TypeError):
            jr.evaluate(model, X, Y, attack=attack, threat=threat, key=KEY)
    with pytest.raises(TypeError, match="lacks steepest"):
        jr.fgsm(
            model, X, Y, threat=type("Half", (Cube,), {"steepest": property()})(1.0)
        )
