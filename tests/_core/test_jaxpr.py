"""The walker of programs: every equation is seen once, and a rule for each is enough."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust._core.jaxpr import bind, constants, equations, inner_jaxprs, interpret

X = jnp.arange(3.0)
SHIFT = jnp.array([0.5, -1.0, 2.0])


@jax.jit
def shifted_sine(x):
    return jnp.sin(x + SHIFT)


def nested(x):
    def body(carry, _):
        return jax.checkpoint(shifted_sine)(carry), None

    x, _ = jax.lax.scan(body, jnp.sin(x), length=2)
    return jax.lax.cond(x.sum() > 0, jnp.sin, lambda x: jnp.sin(jnp.sin(x)), x)


def test_equations_at_any_depth_in_order():
    """In a loop, in a checkpoint, in a jitted function, in the branches: a tuple."""
    jaxpr = jax.make_jaxpr(nested)(X)
    names = [eqn.primitive.name for eqn in equations(jaxpr)]
    assert names.count("sin") == 5
    assert names.index("sin") < names.index("scan") < names.index("add")
    assert names[-1] == "sin"
    (cond,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "cond"]
    assert len(inner_jaxprs(cond)) == len(cond.params["branches"]) == 2
    twice = [eqn.primitive.name for eqn in equations(jaxpr, jaxpr)]
    assert twice == 2 * names


def test_an_open_jaxpr_is_walked_too():
    """That of a checkpoint has no constants of its own (JAX 0.10)."""
    (eqn,) = jax.make_jaxpr(jax.checkpoint(jnp.sin))(X).eqns
    (jaxpr,) = inner_jaxprs(eqn)
    assert [e.primitive.name for e in equations(jaxpr)] == ["sin"]
    assert list(constants(jaxpr)) == []
    np.testing.assert_array_equal(interpret(jaxpr, [X], bind)[0], jnp.sin(X))


def test_interpreting_with_bind_evaluates():
    """Constants, literals and several results are where they belong."""

    def function(x):
        (first, second), _ = jax.lax.top_k(nested(x) * SHIFT, 2)
        return first - 3.0 * second, x

    jaxpr = jax.make_jaxpr(function)(X)
    for found, expected in zip(interpret(jaxpr, [X], bind), function(X), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_rule_goes_into_calls_as_it_likes():
    """The constants of a jitted function that is called are constants here."""

    def rule(eqn, inputs):
        if eqn.primitive.name in ("jit", "pjit"):
            return interpret(eqn.params["jaxpr"], inputs, rule, len)
        return [" ".join([eqn.primitive.name, *map(str, inputs)])]

    jaxpr = jax.make_jaxpr(shifted_sine)(X)
    assert interpret(jaxpr, ["x"], rule, len) == ["sin add x 3"]
