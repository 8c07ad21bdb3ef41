"""What Square and SPSA have in common: they only look at outputs of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrobust as jr

pytestmark = pytest.mark.thin

ATTACKS = {
    "square": jr.Square(num_queries=40),
    "spsa": jr.SPSA(num_steps=4, num_samples=8),
    "spsa_chunks": jr.SPSA(num_steps=4, num_samples=8, chunk_size=2),
}
each_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
X = jax.random.uniform(jax.random.key(1), (3, 8, 8, 1))
Y = jnp.zeros(3, int)
# Weights that vary smoothly over the image, as those of a trained model do.
GRID = np.arange(8) / 8
WAVES = [
    np.cos(5 * GRID)[:, None] * np.sin(4 * GRID)[None, :],
    np.outer(GRID, 1 - GRID),
]
WEIGHTS = jnp.asarray(np.stack([0 * WAVES[0], *WAVES], -1).reshape(64, 3), jnp.float32)
BIAS = jnp.array([20.0, 0.0, 0.0])  # class 0 whatever the attack does


def linear(x):
    flat = x.reshape(len(x), -1)
    return jnp.matmul(flat, WEIGHTS, precision="highest") + BIAS[None]


def linear_gap(attack, threat):
    """Return which part of the largest possible rise of the margin is missing."""
    _, best = jr.certify.linear_worst_case(WEIGHTS, BIAS, X, Y, threat=threat)
    x_adv = attack(linear, X, Y, threat=threat, key=jax.random.key(0))
    reached = jr.losses.margin(linear(x_adv), Y)
    clean = jr.losses.margin(linear(X), Y)
    return np.asarray((best - reached) / (best - clean))


@pytest.mark.parametrize(
    "threat, largest",
    [(jr.Linf(0.1), 0.01), (jr.L2(0.5), 0.25), (jr.L1(2.0), 0.45)],
)
def test_square_comes_near_the_optimum_of_a_linear_model(threat, largest):
    """Law 2, with a gap.

    Windows of one sign find the corner of the l_inf ball. The bumps for l_2 and l_1, of at
    least 3 x 3 pixels and half of each sign, approach the form of the gradient slowly.
    """
    gap = linear_gap(jr.Square(num_queries=2000), threat)
    assert (gap > -1e-5).all() and (gap < largest).all(), gap


@pytest.mark.parametrize(
    "threat, largest",
    [(jr.Linf(0.1), 0.1), (jr.L2(0.5), 0.02), (jr.L1(2.0), 0.15)],
)
def test_spsa_comes_near_the_optimum_of_a_linear_model(threat, largest):
    """Law 2, with a gap: the noise of the estimates and the length of a step."""
    gap = linear_gap(jr.SPSA(num_steps=40), threat)
    assert (gap > -1e-5).all() and (gap < largest).all(), gap


@each_attack
def test_queries_are_counted(attack):
    """`cost` is what the model is asked, counted as inputs that reach it."""
    seen = []

    def counting(x):
        jax.debug.callback(lambda x: seen.append(len(x)), x)
        return linear(x)

    run = jax.jit(
        lambda: attack(counting, X, Y, threat=jr.Linf(0.1), key=jax.random.key(0))
    )
    jax.block_until_ready(run())
    jax.effects_barrier()
    assert attack.total_cost() == jr.attacks.Cost(0, sum(seen) // len(X))
    steps = attack.num_calls
    assert attack.total_cost() == jr.attacks.Cost(*(steps * n for n in attack.cost(10)))


def quantized(x):
    """Sixteen grey levels and no gradient."""
    x = jax.lax.stop_gradient(jnp.round(16 * x) / 16)
    return jnp.matmul(x.reshape(len(x), -1), WEIGHTS - WEIGHTS.mean(0, keepdims=True))


@pytest.mark.parametrize(
    "attack",
    [
        jr.Square(num_queries=100),
        jr.SPSA(num_steps=10, num_samples=32, delta=0.1),
        jr.SPSA(num_steps=20, num_samples=32, delta=0.1, optimizer=optax.adam(0.05)),
    ],
)
def test_no_gradient_is_needed(attack):
    """A model that gives PGD nothing is broken; nothing is differentiated."""

    @jax.custom_vjp
    def model(x):
        return quantized(x)

    def backward(*_):
        raise AssertionError("the attack asks for a gradient")

    model.defvjp(lambda x: (quantized(x), None), backward)
    y = quantized(X).argmax(-1)
    threat, key = jr.Linf(0.2), jax.random.key(0)
    blind = jr.PGD(num_steps=10, random_start=False)(quantized, X, y, threat=threat)
    np.testing.assert_array_equal(blind, X)
    x_adv = attack(model, X, y, threat=threat, key=key)
    assert (quantized(x_adv).argmax(-1) != y).all()


@pytest.mark.parametrize("name", ["square", "spsa"])
def test_function_forms(name):
    """`jr.square` and `jr.spsa` take the fields, and restarts."""
    attack = ATTACKS[name]
    settings = {
        "square": dict(num_queries=40),
        "spsa": dict(num_steps=4, num_samples=8),
    }[name]
    call = dict(threat=jr.Linf(0.1), key=jax.random.key(0))
    value = attack(linear, X, Y, **call)
    function = getattr(jr, name)(linear, X, Y, **call, **settings)
    np.testing.assert_array_equal(function, value)
    twice = getattr(jr, name)(linear, X, Y, **call, num_restarts=2, **settings)
    expected = jr.Restarts(attack, 2)(linear, X, Y, **call)
    np.testing.assert_array_equal(twice, expected)


def test_the_key_is_asked_for():
    """Law 8: both draw random numbers."""
    for attack in (ATTACKS["square"], ATTACKS["spsa"]):
        with pytest.raises(ValueError, match="needs a key"):
            attack(linear, X, Y, threat=jr.Linf(0.1))


HARD = [
    lambda x: 0 * x[:, 0, 0, :1] + jnp.zeros((1, 2)),
    lambda x: x[:, 0, 0, :1] * jnp.full((1, 2), jnp.nan),
    lambda x: jnp.log(x[:, 0, 0, :1] - 0.5) * jnp.array([[1.0, -1.0]]),
    lambda x: 1e38 * (x[:, 0, 0, :1] - 0.5) * jnp.array([[9.0, -9.0]]),
]


@pytest.mark.parametrize("name, dtype", [("square", "bfloat16"), ("spsa", "float32")])
def test_no_nan_from_hard_models(name, dtype):
    """Law 6: flat, undefined and overflowing models leave a feasible point."""
    attack, threat, x = ATTACKS[name], jr.L2(0.5), X.astype(dtype)

    def run(number):
        return attack.run(
            lambda x: jax.lax.switch(number, HARD, x.astype(jnp.float32)),
            x,
            Y,
            threat,
            jax.random.split(jax.random.key(0), 3),
        )

    for number, x_adv in enumerate(jax.lax.map(jax.jit(run), jnp.arange(len(HARD)))):
        assert x_adv.dtype == x.dtype and jnp.isfinite(x_adv).all(), number
        assert (x_adv >= 0).all() and (x_adv <= 1).all()
        # Rounding each of 64 coordinates by at most half an ulp, 2^-9 below 1.
        slack = 8 * 2**-9 if dtype == "bfloat16" else 1e-6
        assert (threat.distance(x_adv, x) <= 0.5 + slack).all()
