"""`fast_convolutions` exchanges what it should, and nothing else changes."""

import functools

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

import jaxrobust as jr
from jaxrobust._cpu import convolution

pytestmark = pytest.mark.thin

if jax.default_backend() != "cpu":
    pytest.skip("other platforms keep jax.lax's gradients", allow_module_level=True)

LAYOUT = ("NHWC", "HWIO", "NHWC")
X = jax.random.normal(jax.random.key(0), (3, 8, 8, 2))
W = jax.random.normal(jax.random.key(1), (3, 3, 2, 2))


def conv(x, w=W, strides=(1, 1), **options):
    options = {"dimension_numbers": LAYOUT, "padding": "SAME", **options}
    return lax.conv_general_dilated(x, w, strides, **options)


def count(fn, *args):
    """Return how many (fast, plain) convolutions the program of `fn` has."""
    program = str(jax.make_jaxpr(fn)(*args))
    fast = program.count("fast_conv_general_dilated[")
    return fast, program.count("conv_general_dilated[") - fast


def assert_same(fn, *args, num_convs=1, num_plain=0):
    """Check the exchange, and that value and gradient stay."""
    fast = jr.fast_convolutions(fn)
    assert count(fast, *args) == (num_convs, num_plain)

    def scalar(fn):
        return jax.jit(jax.value_and_grad(lambda x: jnp.tanh(fn(x, *args[1:])).sum()))

    # Sums of some hundred products of order one, in another order, some cubed.
    for a, b in zip(*(scalar(f)(args[0]) for f in (fast, fn)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-5)


def in_scan(x):
    return lax.scan(lambda x, _: (jnp.tanh(conv(x)), None), x, None, length=3)[0]


def in_scanned_gradient(x):
    # Small steps: long ones amplify rounding, as any chaotic map does.
    def step(x, _):
        return x + 0.01 * jax.grad(lambda x: jnp.sin(conv(x)).sum())(x), None

    return lax.scan(step, conv(x), None, length=3)[0]


def in_cond(x):
    return lax.cond(x.sum() > 100, lambda x: conv(x), lambda x: 2 * conv(x), x)


def in_jit(x):
    layer = jax.jit(lambda x: jax.nn.relu(conv(x)))
    return layer(layer(x))


def in_remat(x):
    return jax.checkpoint(lambda x: jnp.sin(conv(x)))(x)


def in_switch_in_scan(x):
    def step(x, i):
        branches = [jnp.sin, jax.checkpoint(jax.jit(conv)), jnp.cos]
        return lax.switch(i, branches, x), None

    return lax.scan(step, x, jnp.arange(3))[0]


@pytest.mark.parametrize(
    "fn, num_convs, num_plain",
    [
        (in_scan, 1, 0),
        # The input gradient that the caller took, without stride, is one as well.
        (in_scanned_gradient, 3, 0),
        (in_cond, 2, 0),
        (in_jit, 1, 0),
        (in_remat, 1, 0),
        (in_switch_in_scan, 1, 0),
    ],
)
def test_control_flow(fn, num_convs, num_plain):
    assert_same(fn, X, num_convs=num_convs, num_plain=num_plain)


def test_while_loop():
    def fn(x):
        body = lambda state: (state[0] + 1, jnp.tanh(conv(state[1])))  # noqa: E731
        return lax.while_loop(lambda state: state[0] < 3, body, (0, x))[1]

    fast = jr.fast_convolutions(fn)
    assert count(fast, X) == (1, 0)
    np.testing.assert_allclose(jax.jit(fast)(X), fn(X), atol=5e-6)  # of three rounds


def test_rematerialisation_keeps_its_policy():
    """A policy that saves convolutions recognises the exchanged ones."""
    policy = jax.checkpoint_policies.dots_saveable

    def fn(x):
        return jax.checkpoint(lambda x: jnp.sin(conv(x)), policy=policy)(x)

    gradient = jax.grad(lambda x: jr.fast_convolutions(fn)(x).sum())
    # One for the value, one for the gradient: none is computed again.
    assert count(gradient, X) == (2, 0)
    assert_same(fn, X)


OPTIONS = {
    "groups": ((3, 3, 1, 2), {"feature_group_count": 2}),
    "batch groups": ((3, 3, 2, 3), {"batch_group_count": 3}),
    "lhs dilation": ((3, 3, 2, 2), {"lhs_dilation": (2, 1), "padding": [(0, 0)] * 2}),
    "rhs dilation": ((3, 3, 2, 2), {"rhs_dilation": (2, 2)}),
    "accumulation type": ((3, 3, 2, 2), {"preferred_element_type": jnp.float64}),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_unusual_convolutions_stay(case):
    shape, options = OPTIONS[case]
    kernel = jnp.ones(shape)
    with jax.enable_x64(case == "accumulation type"):
        assert_untouched(lambda x: conv(x, kernel, **options), X)


def assert_untouched(fn, *args):
    programs = [str(jax.make_jaxpr(f)(*args)) for f in (jr.fast_convolutions(fn), fn)]
    assert programs[0] == programs[1] and "conv_general_dilated" in programs[0]


def test_other_shapes_and_types_stay():
    assert_untouched(lambda x: conv(x, jnp.ones((3, 3, 2, 2))), X[:0])
    for dtype in (jnp.bfloat16, jnp.float16):
        kernel = W.astype(dtype)
        assert_untouched(lambda x, w=kernel: conv(x, w), X.astype(dtype))
    assert_untouched(lambda x: conv(x, jnp.ones((12, 12, 2, 1))), X)
    layout = {"dimension_numbers": ("NWC", "WIO", "NWC")}
    assert_untouched(lambda x: conv(x, W[0], (1,), **layout), X[0])


@jax.custom_jvp
def odd(x):
    return jnp.sin(x)


@odd.defjvp
def _(primals, tangents):
    return odd(*primals), 3 * tangents[0]  # not the derivative: it shows who is asked


@jax.custom_vjp
def odd_conv(x):
    return conv(x)


odd_conv.defvjp(lambda x: (conv(x), None), lambda _, g: (7 * g,))


def test_rules_of_the_user_are_kept():
    assert_same(lambda x: odd(conv(odd(x))), X)
    assert_same(lambda x: odd_conv(conv(x)), X, num_convs=2)
    fast = jr.fast_convolutions(lambda x: odd_conv(x).sum() + conv(0 * x).sum())
    np.testing.assert_array_equal(jax.grad(fast)(X), jnp.full(X.shape, 7.0))


@jax.custom_jvp
def jvp_with_convolutions(x, scale):
    return scale * conv(x)


@jvp_with_convolutions.defjvp
def _(primals, tangents):
    (x, scale), (dx, dscale) = primals, tangents
    return scale * conv(x), 3 * scale * conv(dx) + dscale * conv(x)


@jax.custom_vjp
def vjp_with_convolutions(x, scale):
    return scale * conv(x)


def _forwards(x, scale):
    return scale * conv(x), (x, scale)


def _backwards(residuals, g):
    x, scale = residuals
    out, pull = jax.vjp(conv, x)
    return 3 * scale * pull(g)[0], jnp.vdot(out, g)


vjp_with_convolutions.defvjp(_forwards, _backwards)


@pytest.mark.parametrize("layer", [jvp_with_convolutions, vjp_with_convolutions])
@pytest.mark.parametrize("scale", [2.0, None], ids=["static", "traced"])
def test_rules_with_convolutions_are_exchanged(layer, scale):
    """In the value and in its gradient, also in loops, not one plain one is left."""

    def fn(x):
        factor = jnp.tanh(x).mean() if scale is None else scale

        def step(x, _):
            return jnp.tanh(jax.jit(layer)(x, factor)), None

        return lax.scan(step, x, None, length=2)[0]

    fast = jr.fast_convolutions(fn)
    assert_same(fn, X)
    gradient = jax.grad(lambda x: fast(x).sum())
    num_fast, num_plain = count(gradient, X)
    assert num_fast >= 2 and num_plain == 0
    stacked = jnp.stack([X, -X])
    found = jax.vmap(gradient)(stacked)
    np.testing.assert_allclose(found[1], gradient(-X), atol=1e-5)  # rounding


def test_forward_mode_of_an_exchanged_rule():
    """The user's rule, three times the derivative, is what forward mode sees."""

    def fn(x):
        return jvp_with_convolutions(x, 2.0)

    value, tangent = jax.jvp(jr.fast_convolutions(fn), (X,), (X,))
    np.testing.assert_allclose(tangent, 3 * value, atol=1e-5)  # rounding


def test_stopped_gradients_and_effects():
    seen = []

    def fn(x):
        jax.debug.callback(lambda v: seen.append(float(v)), x[0, 0, 0, 0])
        return conv(x * lax.stop_gradient(x)).sum()

    found = jax.jit(jax.grad(jr.fast_convolutions(fn)))(X)
    jax.effects_barrier()
    assert seen == [float(X[0, 0, 0, 0])]
    np.testing.assert_allclose(found, jax.grad(fn)(X), atol=1e-5)  # rounding


def test_vmap_of_the_exchanged_function():
    fast = jr.fast_convolutions(lambda x: conv(x).sum())
    stacked = jnp.stack([X, -X])
    assert count(jax.vmap(fast), stacked) == (1, 0)
    gradient = jax.jit(jax.vmap(jax.grad(fast)))(stacked)
    np.testing.assert_allclose(gradient[1], jax.grad(fast)(-X), atol=1e-5)  # rounding


# Frameworks


class NNXModel(nnx.Module):
    def __init__(self):
        self.conv = nnx.Conv(2, 4, (3, 3), 2, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return nnx.max_pool(self.norm(self.conv(x)), (2, 2), (2, 2)).reshape(len(x), -1)


def linen_partial():
    model = linen.Conv(4, (3, 3), 2)
    flat = lambda params, x: model.apply(params, x).reshape(len(x), -1)  # noqa: E731
    return jax.tree_util.Partial(flat, model.init(jax.random.key(0), X))


def equinox_vmap():
    layers = [
        eqx.nn.Conv2d(2, 4, 3, 2, key=jax.random.key(0)),
        eqx.nn.MaxPool2d(2, 2),
        eqx.nn.Lambda(jnp.ravel),
    ]
    model = eqx.nn.Sequential(layers)
    return lambda x: jax.vmap(model)(x.transpose(0, 3, 1, 2))


def haiku_partial():
    def net(x):
        return hk.Conv2D(4, 3, 2)(x).reshape(len(x), -1)

    net = hk.without_apply_rng(hk.transform(net))
    return jax.tree_util.Partial(net.apply, net.init(jax.random.key(0), X))


FRAMEWORKS = [NNXModel, linen_partial, equinox_vmap, haiku_partial]


@pytest.mark.parametrize("make", FRAMEWORKS)
def test_frameworks(make):
    with jax.numpy_rank_promotion("allow"):  # of the frameworks
        assert_same(make(), X)


@pytest.mark.parametrize("make", FRAMEWORKS)
def test_attacks_apply_it(make, monkeypatch):
    """Eager and traced calls; a model marked as plain, and the environment variable."""
    fn, x = make(), jax.nn.sigmoid(X)
    y, threat = jnp.array([0, 1, 2]), jr.Linf(0.1)

    def attack(fn, x):
        return jr.fgsm(fn, x, y, threat=threat)

    with jax.numpy_rank_promotion("allow"):
        fast, plain = attack(fn, x), attack(jr.plain_convolutions(fn), x)
        # The forward pass; the gradient, strided with 2 channels, is a matrix product.
        assert count(lambda x: attack(fn, x), x) == (1, 0)
        assert count(lambda x: attack(jr.plain_convolutions(fn), x), x)[0] == 0
        monkeypatch.setenv("JAXROBUST_PLAIN_CONVOLUTIONS", "1")
        assert count(lambda x: attack(fn, x), x)[0] == 0
    # Rounding turns the sign of a gradient only where that is zero.
    assert np.mean(np.asarray(fast != plain)) < 0.01


def test_training_applies_it():
    from jaxrobust._core.placing import Placing
    from jaxrobust.training import step

    model = NNXModel()
    views, weights = step.split_model(model)
    objective = jr.training.adversarial(jr.FGSM(), jr.Linf(0.1, bounds=None))
    optimizer = step.optax.sgd(0.1)
    state = step.TrainState(jnp.int32(0), weights, optimizer.init(weights.params), None)
    train_step = step.make_train_step(
        views,
        objective,
        optimizer,
        batch_size=3,
        scale=1.0,
        augment=None,
        attacked_mode="eval",
        ema_decay=None,
        placing=Placing(),
    )
    args = state, X, jnp.array([0, 1, 2]), jnp.arange(3), jax.random.key(0)
    with jax.numpy_rank_promotion("allow"):
        num_fast, num_plain = count(train_step, *args)
    assert num_fast >= 2 and num_plain == 0


def test_slow_in_loops():
    """Grouped convolutions stay XLA's, wherever they are."""

    def grouped(x):
        kernel = jnp.ones((3, 3, 1, x.shape[-1]))
        options = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", feature_group_count=x.shape[-1], **options
        )

    def in_loop(x):
        return jax.lax.scan(lambda x, _: (jax.jit(grouped)(x), None), x, length=2)[0]

    x = jnp.ones((2, 5, 5, 3))
    is_slow = convolution.is_slow_in_loops
    assert is_slow(jr.fast_convolutions(grouped), x)
    assert is_slow(jax.grad(lambda x: jr.fast_convolutions(in_loop)(x).sum()), x)
    assert not is_slow(lambda x: jnp.sin(x), x)


# The function transform


def test_without_convolutions_the_program_is_the_same():
    calls = []

    def fn(x):
        calls.append(type(x))
        return {"out": jax.nn.relu(jnp.sin(x)), "nothing": None}

    fast = jr.fast_convolutions(fn)
    assert str(jax.make_jaxpr(fast)(X)) == str(jax.make_jaxpr(fn)(X))
    calls.clear()
    out = fast(X)
    assert len(calls) == 1, "it is traced once"
    np.testing.assert_array_equal(out["out"], jax.nn.relu(jnp.sin(X)))
    assert out["nothing"] is None


def test_arguments_and_results():
    @jr.fast_convolutions
    def fn(x, mode, *, kernel, scale=1.0):
        assert mode == "same" and isinstance(scale, float)
        return {"out": conv(x, kernel) * scale}, (kernel, None)

    out, (kernel, nothing) = fn(np.asarray(X), "same", kernel=W, scale=2.0)
    np.testing.assert_allclose(out["out"], 2 * conv(X), atol=1e-5)  # rounding
    assert (kernel == W).all() and nothing is None


def test_what_cannot_be_traced_runs_as_it_is():
    @jr.fast_convolutions
    def fn(x):
        return conv(x) * (1 if float(x.sum()) > 0 else -1)

    np.testing.assert_array_equal(fn(X), conv(X) * jnp.sign(X.sum()))
    with pytest.raises(ValueError, match="my error"):
        jr.fast_convolutions(raises)(X)


def raises(x):
    raise ValueError("my error")


def test_a_pytree_stays_a_pytree():
    model = jax.tree_util.Partial(conv, w=W)
    for transform in (jr.fast_convolutions, jr.plain_convolutions):
        marked = transform(model)
        assert jax.tree.leaves(marked)[0] is W
        assert jax.tree.structure(marked) == jax.tree.structure(transform(model))
        assert jr.fast_convolutions(marked) is marked


def test_a_plain_part_stays_plain():
    part = jr.plain_convolutions(jax.jit(conv))
    both = jr.fast_convolutions(lambda x: conv(part(jnp.sin(part(x)))))
    assert count(both, X) == (1, 1), "the part is one jitted function, called twice"
    mapped = jr.fast_convolutions(jax.vmap(jr.plain_convolutions(conv)))
    assert count(mapped, X[None]) == (0, 1)


def test_a_plain_closure_stays_plain_in_a_compiled_attack():
    """A call outside of a transformation wraps the closure once more."""
    from jaxrobust.attacks._model import as_model

    closure = jr.plain_convolutions(lambda x: conv(x))
    wrapped = jr.fast_convolutions(as_model(closure, X).tree)
    assert count(wrapped, X) == (0, 1)


def test_a_changed_closure_is_seen():
    captured = {"w": W}
    fast = jr.fast_convolutions(lambda x: conv(x, captured["w"]))
    first = fast(X)
    captured["w"] = -W
    np.testing.assert_array_equal(fast(X), -first)


def test_other_default_devices_keep_their_program(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert count(jr.fast_convolutions(conv), X) == (0, 1)
    with jax.default_device(jax.devices("cpu")[0]):
        assert count(jr.fast_convolutions(conv), X) == (1, 0)


def test_one_jitted_function_stays_one():
    layer = jax.jit(lambda x: jnp.sin(conv(x)))
    closed = jax.make_jaxpr(lambda x: layer(layer(x)))(X)
    first, second = convolution._exchange(closed).jaxpr.eqns
    assert first.params["jaxpr"] is second.params["jaxpr"]


def test_shard_map():
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("batch",))
    parts = jax.sharding.PartitionSpec("batch")
    x = jnp.concatenate([X, X])[:4]

    def gradient(fn, x):
        return jax.grad(lambda x: jnp.sin(fn(x)).sum())(x)

    run = functools.partial(gradient, jr.fast_convolutions(conv))
    mapped = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=parts, out_specs=parts))
    np.testing.assert_allclose(mapped(x), gradient(conv, x), atol=1e-5)  # rounding
