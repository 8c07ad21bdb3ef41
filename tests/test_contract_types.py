"""Every attack under strict promotion of types, in double precision, on no examples.

All of these fail while the program is traced: nothing is compiled.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from tests.test_contract import ATTACKS, KEY, THREATS, X, Y

pytestmark = pytest.mark.thin

ALL = {
    **ATTACKS,
    "fab_targeted": jr.Targets(jr.FAB(num_steps=2, targeted=True)),
    "plus": jr.autoattack("plus"),
}
EPS = {  # a threat, and what its eps is
    "linf": lambda eps: jnp.full(4, eps, jnp.float32),
    "l2_mask": np.float64,
    "l1": float,
}
WEIGHTS = np.random.default_rng(0).normal(size=(6, 3))
each_attack = pytest.mark.parametrize("name", ALL)


def traced(name, threat, x, y):
    weights = WEIGHTS.astype(x.dtype)
    model = jax.tree_util.Partial(lambda w, x: jnp.tanh(x - 0.5) @ w, weights)

    def run(x, key):
        return ALL[name](model, x, y, threat=threat, key=key)

    return jax.eval_shape(run, x, KEY)


@each_attack
@pytest.mark.parametrize("norm", EPS)
def test_strict_promotion(name, norm):
    """Types are never mixed: float32 inputs, int32 labels, eps of any kind."""
    threat = THREATS[norm].with_eps(EPS[norm](THREATS[norm].eps))
    with jax.numpy_dtype_promotion("strict"):
        assert traced(name, threat, X, Y.astype(jnp.int32)).dtype == X.dtype


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_strict_promotion_outside_jit(norm):
    """The checks on the host mix no types either."""
    with jax.numpy_dtype_promotion("strict"):
        x_adv = jr.fgsm(lambda x: x[:, :3] * 2, X, Y, threat=THREATS[norm])
    assert (x_adv != X).any()


@each_attack
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_double_precision(name, dtype):
    """With jax_enable_x64: inputs keep their type, whatever else is in float64."""
    x, y = np.asarray(X, dtype), np.asarray(Y)
    with jax.enable_x64(True):
        for norm in ("linf", "l2", "l1") if dtype == np.float64 else ("l2",):
            assert traced(name, THREATS[norm], x, y).dtype == dtype


@pytest.mark.slow
def test_double_precision_of_bounds_and_of_fab():
    """A bound of 0.7 is that of float64, in the attack and in the audit."""
    x = np.full((3, 6), 0.7)
    x[:, ::2] = 0.69999999
    y = (np.tanh(x - 0.5) @ WEIGHTS).argmax(-1)
    threat = jr.Linf(1e-3, bounds=(0.0, 0.7))
    with jax.enable_x64(True):
        report = jr.evaluate(
            lambda x: jnp.tanh(x - 0.5) @ WEIGHTS,
            x,
            y,
            attack=jr.FAB(num_steps=2),
            threat=threat,
            progress=False,
        )
    assert report.x_adv.dtype == np.float64
    assert report.x_adv.max() <= 0.7 and report.audit["outside_bounds"] == 0


@each_attack
def test_no_examples(name):
    """A batch of length 0 gives one of length 0."""
    for norm in ("l2", "l1"):
        assert traced(name, THREATS[norm], X[:0], Y[:0]).shape == (0, 6)


def test_no_examples_outside_jit():
    """So do the checks on the host, projections and the certificate."""
    threat, none = jr.L2(0.5), X[:0]
    assert jr.pgd(lambda x: x, none, Y[:0], threat=threat, key=KEY).shape == (0, 6)
    assert threat.project(none, none).shape == (0, 6)
    x_adv, margin = jr.certify.linear_worst_case(
        jnp.asarray(WEIGHTS, jnp.float32), jnp.zeros(3), none, Y[:0], threat=threat
    )
    assert x_adv.shape == (0, 6) and margin.shape == (0,)


def test_wrappers_of_plain_functions_inside_jit():
    """A closure is no array: the checks of the inner attack see its program only."""
    attack = jr.Restarts(jr.PGD(num_steps=2), 2)
    weights = jnp.asarray(WEIGHTS, jnp.float32)

    def run(x):
        return attack(lambda x: x @ weights, x, Y, threat=THREATS["l2"], key=KEY)

    assert jax.eval_shape(run, X).shape == X.shape
