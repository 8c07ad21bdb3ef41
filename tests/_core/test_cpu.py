"""The policy of XLA:CPU: what is there because of it is there alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust._core import cpu
from jaxrobust._core.jaxpr import equations
from jaxrobust.evaluation._given import default_batch_size

WORKAROUNDS = {"optimization_barrier", "fast_conv_general_dilated"}
WORKAROUNDS |= {"fast_broadcast_in_dim", "fast_reduce_window_max"}
KERNEL = jax.random.normal(jax.random.key(0), (3, 3, 1, 5))
BIAS = jnp.ones((1, 1, 1, 5))


def network(x):
    """Return the logits of a convolution with a bias and max-pooling."""
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(
        x, KERNEL, (1, 1), "SAME", dimension_numbers=numbers
    )
    window = (1, 2, 2, 1)
    x = jax.lax.reduce_window(x + BIAS, -jnp.inf, jax.lax.max, window, window, "SAME")
    return x.mean((1, 2))


def workarounds(attack, threat, num_examples):
    """Return which workarounds are in the program of an attack."""

    def run(x, y, key):
        return attack(network, x, y, threat=threat, key=key)

    x, y = jnp.zeros((num_examples, 6, 6, 1)), jnp.zeros(num_examples, int)
    jaxpr = jax.make_jaxpr(run)(x, y, jax.random.key(0))
    return {eqn.primitive.name for eqn in equations(jaxpr)} & WORKAROUNDS


@pytest.mark.parametrize(
    "attack, threat",
    [
        (jr.PGD(num_steps=2, step_size=0.1), jr.L2(0.5)),
        (jr.APGD(num_steps=2), jr.L1(1.0)),
        (jr.FAB(num_steps=2), jr.Linf(0.1)),
    ],
    ids=["pgd", "apgd", "fab"],
)
def test_programs_for_others_hold_nothing_of_it(attack, threat, monkeypatch):
    if cpu.is_target():
        found = workarounds(attack, threat, 3)
        assert found == WORKAROUNDS
    monkeypatch.setattr(cpu, "is_target", lambda: False)
    # Of another shape: within a process the answer does not change, and JAX keeps traces.
    assert workarounds(attack, threat, 2) == set()


def test_the_default_device_decides(monkeypatch):
    """Its name, the device itself, or the backend where none is chosen."""
    for device in ("cpu", jax.devices("cpu")[0]):
        with jax.default_device(device):
            assert cpu.is_target()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not cpu.is_target()
    assert (cpu.steps_per_call(), cpu.batch_size(num_devices=3)) == (100, 1536)
    assert default_batch_size(50, 3) == 51
    with jax.default_device(jax.devices("cpu")[0]):
        assert cpu.is_target()
        assert (cpu.steps_per_call(), cpu.batch_size(num_devices=3)) == (10, 128)


@pytest.mark.parametrize("is_target", [True, False])
def test_values_are_those_given(is_target, monkeypatch):
    monkeypatch.setattr(cpu, "is_target", lambda: is_target)
    x = jax.random.normal(jax.random.key(1), (3, 4))
    np.testing.assert_array_equal(cpu.opaque(x), x)
    np.testing.assert_array_equal(cpu.computed_once(x), x)
