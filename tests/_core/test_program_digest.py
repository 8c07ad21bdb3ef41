"""Programs are recognised by what they compute."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrobust as jr
from jaxrobust._core.program_digest import HostCallError, program_digest

ROOT = pathlib.Path(__file__).parents[2]
X = jnp.linspace(0.0, 1.0, 6).reshape(2, 3)
Y = jnp.array([0, 2])


def attacked(model, attack, **options):
    """Return the digest of an attack on a model."""
    return program_digest(
        lambda x, y, key: attack(model, x, y, threat=jr.Linf(0.1), key=key, **options),
        X, Y, jax.random.key(0),
    )  # fmt: skip


def scaled(factor, array=None, key=None):
    """A closure with a number, an array and a key."""
    array = jnp.ones((2, 3)) if array is None else array
    key = jax.random.key(0) if key is None else key

    @jax.jit
    def model(x):
        noise = jax.random.normal(key, x.shape)
        first = lambda x, _: (factor * x * array + noise, None)  # noqa: E731
        return jax.lax.scan(first, x, None, length=3)[0]

    return model


def test_equal_programs_have_equal_digests():
    """Other objects, addresses and names do not matter."""
    assert program_digest(scaled(2.0), X) == program_digest(scaled(2.0), X)
    assert program_digest(lambda x: x + 1, X) == program_digest(lambda y: y + 1, X)
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    assert program_digest(scaled(2.0), X) == program_digest(scaled(2.0), shape)


@pytest.mark.parametrize(
    "other",
    [
        scaled(np.nextafter(np.float32(2), np.float32(3))),
        scaled(2.0, array=jnp.ones((2, 3)).at[1, 1].set(1.0000001)),
        scaled(2.0, key=jax.random.key(1)),
        scaled(2.0, key=jax.random.key(0, impl="rbg")),
        lambda x: scaled(2.0)(x).T,
        lambda x: (scaled(2.0)(x),),
    ],
)
def test_constants_of_closures_count_by_value(other):
    """The last bit of a number, an entry of an array, a key, a structure."""
    assert program_digest(other, X) != program_digest(scaled(2.0), X)


def test_a_long_constant_counts_whole():
    """Its text would be abbreviated."""
    one = np.zeros(5000, np.float32)
    two = one.copy()
    two[2500] = 1
    digests = [program_digest(lambda x, c=c: x.sum()[None] + c, X) for c in (one, two)]
    assert digests[0] != digests[1]


def test_shapes_and_types_of_arguments():
    """Another batch size or dtype is another program."""
    inputs = (X, X[:1], X.astype(jnp.bfloat16))
    digests = {program_digest(jnp.sin, x) for x in inputs}
    assert len(digests) == 3


def backward(factor):
    """The identity with another gradient."""

    @jax.custom_vjp
    def identity(x):
        return x

    identity.defvjp(lambda x: (x, None), lambda _, g: (factor * g,))
    return identity


def test_custom_gradients_count_where_they_are_used():
    """Forward alone they are one program; an attack sees the difference."""
    one, two = backward(1.0), backward(-1.0)
    assert program_digest(one, X) == program_digest(two, X)
    assert attacked(one, jr.FGSM()) != attacked(two, jr.FGSM())
    assert attacked(one, jr.FGSM()) == attacked(backward(1.0), jr.FGSM())
    bpda = [
        jr.bpda(jnp.round, backward=surrogate) for surrogate in (lambda x: x, jnp.tanh)
    ]
    assert attacked(bpda[0], jr.FGSM()) != attacked(bpda[1], jr.FGSM())


@pytest.mark.parametrize(
    "settings",
    [
        lambda rate: dict(optimizer=optax.sgd(rate)),
        lambda rate: dict(loss=lambda logits, y: rate * jr.losses.margin(logits, y)),
        lambda rate: dict(step_schedule=optax.linear_schedule(rate, 0.0, 3)),
    ],
)
def test_what_the_text_of_an_attack_hides(settings):
    """An optimiser, a loss, a schedule."""
    attacks = [jr.PGD(num_steps=3, **settings(rate)) for rate in (0.5, 0.25)]
    assert attacked(lambda x: x, attacks[0]) != attacked(lambda x: x, attacks[1])
    again = jr.PGD(num_steps=3, **settings(0.5))
    assert attacked(lambda x: x, attacks[0]) == attacked(lambda x: x, again)


def test_functions_of_the_host():
    """They cannot be known; those that only look do not count."""

    def on_host(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    def looking(x):
        jax.debug.print("{}", x)
        return jnp.sin(x)

    with pytest.raises(HostCallError, match="calls the host"):
        program_digest(on_host, X)
    assert program_digest(on_host, X, host_calls=True)
    assert program_digest(looking, X) == program_digest(jnp.sin, X)


SCRIPT = "from tests._core.test_program_digest import whole; print(whole())"


def whole():
    """The digest of an attack with everything in it."""
    attack = jr.Restarts(jr.PGD(num_steps=3, optimizer=optax.adam(0.1)), 2)
    return attacked(scaled(2.0), attack)


def test_another_process_finds_the_same():
    """Neither addresses nor the order of sets are in it."""
    command = [sys.executable, "-c", SCRIPT]
    output = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert output.stdout.strip() == whole(), output.stderr
