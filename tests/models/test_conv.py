"""The convolution agrees with `jax.lax` and keeps its gradients out of slow kernels."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxrobust.models import conv as conv_module
from jaxrobust.models import conv_general_dilated

LAYOUT = ("NHWC", "HWIO", "NHWC")

# (image, kernel, strides, padding): every rule of the implementation at least once,
# few and many channels, even and odd sizes, pixels that no window reads, and pads
# larger than the kernel.
CASES = {
    "tutorial": ((9, 8, 1), (3, 3, 4), 1, ((1, 1), (1, 1))),
    "tutorial strided": ((9, 8, 6), (3, 3, 4), 2, ((1, 1), (1, 1))),
    "wide": ((7, 8, 6), (5, 5, 4), 1, "SAME"),
    "small": ((8, 8, 1), (4, 4, 4), 2, ((1, 1), (1, 1))),
    "valid": ((9, 7, 5), (4, 3, 2), 1, "VALID"),
    "unread border": ((10, 9, 5), (3, 2, 2), 3, "VALID"),
    "shortcut": ((8, 8, 5), (1, 1, 7), 2, "VALID"),
    "pointwise": ((4, 4, 5), (1, 1, 7), 1, "SAME"),
    "lower": ((7, 7, 5), (2, 2, 3), 2, "SAME_LOWER"),
    "asymmetric": ((6, 7, 5), (3, 4, 2), 1, ((0, 2), (3, 1))),
    "large pads": ((5, 5, 5), (2, 2, 2), 1, ((3, 2), (2, 4))),
    "large pads, grey": ((5, 5, 1), (2, 2, 2), 2, ((3, 2), (2, 4))),
}


def problem(image, kernel, batch=3, dtype=jnp.float32):
    """Returns random images and a random kernel."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, *image)), dtype)
    kernel = (*kernel[:2], image[-1], kernel[2])
    return x, jnp.asarray(rng.normal(size=kernel), dtype)


def value_and_grads(conv, strides, padding):
    """Returns a compiled function: output and both gradients of a convolution."""

    def run(x, kernel):
        out, vjp = jax.vjp(
            lambda x, kernel: conv(
                x, kernel, strides, padding, dimension_numbers=LAYOUT
            ),
            x,
            kernel,
        )
        return out, *vjp(jnp.cos(out))

    return jax.jit(run)


def assert_close(got, expected):
    # Both sum at most a few hundred products in another order: the error stays far
    # below 1e-5 of the largest entry, and a wrong tap would be of order one.
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(abs(b).max()))


@pytest.mark.parametrize("case", CASES)
def test_equals_lax(case):
    image, kernel, stride, padding = CASES[case]
    x, w = problem(image, kernel)
    strides = (stride, stride)
    got = value_and_grads(conv_general_dilated, strides, padding)(x, w)
    expected = value_and_grads(lax.conv_general_dilated, strides, padding)(x, w)
    assert (got[0] == expected[0]).all(), "the forward pass must be XLA's own"
    assert_close(got, expected)


def test_different_strides_per_axis():
    x, w = problem((9, 8, 5), (3, 2, 4))
    got = value_and_grads(conv_general_dilated, (1, 2), "SAME")(x, w)
    assert_close(got, value_and_grads(lax.conv_general_dilated, (1, 2), "SAME")(x, w))


@pytest.mark.parametrize("channels", [1, 5])
def test_negative_padding_cuts_the_image(channels):
    # `jax.lax` itself reads outside of the image here on the CPU (JAX 0.10.2), so the
    # reference cuts first.
    x, w = problem((7, 8, channels), (3, 3, 4))
    got = value_and_grads(conv_general_dilated, (1, 1), ((-1, 1), (2, -2)))(x, w)
    out, dx, dw = value_and_grads(lax.conv_general_dilated, (1, 1), ((0, 1), (2, 0)))(
        x[:, 1:, :-2], w
    )
    assert_close(got, (out, jnp.pad(dx, ((0, 0), (1, 0), (0, 2), (0, 0))), dw))


@pytest.mark.parametrize("case", ["tutorial strided", "wide"])
@pytest.mark.parametrize("in_axes", [(0, None), (None, 0), (0, 0)])
def test_vmap(case, in_axes):
    image, kernel, stride, padding = CASES[case]
    x, w = problem(image, kernel)
    stacked = [
        jnp.stack([a, 2 * a]) if axis == 0 else a
        for a, axis in zip((x, w), in_axes, strict=True)
    ]
    run = value_and_grads(conv_general_dilated, (stride, stride), padding)
    got = jax.jit(jax.vmap(run, in_axes))(*stacked)
    one = run(*(a[1] if i == 0 else a for a, i in zip(stacked, in_axes, strict=True)))
    assert_close([leaf[1] for leaf in got], one)


def test_grad_inside_scan():
    x, w = problem((8, 8, 1), (3, 3, 4))

    def ascend(conv):
        def step(x, _):
            def loss(x):
                out = conv(x, w, (2, 2), "SAME", dimension_numbers=LAYOUT)
                return jnp.tanh(out).sum()

            return x + 0.1 * jax.grad(loss)(x), None

        return jax.jit(lambda x: lax.scan(step, x, None, length=5)[0])

    got, expected = ascend(conv_general_dilated)(x), ascend(lax.conv_general_dilated)(x)
    assert_close(got, expected)


@pytest.mark.parametrize("case", ["tutorial strided", "wide"])
def test_second_derivatives(case):
    image, kernel, stride, padding = CASES[case]
    x, w = problem(image, kernel, batch=1)

    def penalty(conv, order):
        def value(x, w):
            out = conv(x, w, (stride, stride), padding, dimension_numbers=LAYOUT)
            return jnp.tanh(out).sum()

        if order == "reverse over reverse":
            inner = jax.grad(value)
            return jax.jit(jax.grad(lambda x, w: (inner(x, w) ** 2).sum(), (0, 1)))
        return jax.jit(lambda x, w: jax.jvp(jax.grad(value, 1), (x, w), (x, w)))

    for order in ("reverse over reverse", "forward over reverse"):
        got = penalty(conv_general_dilated, order)(x, w)
        assert_close(got, penalty(lax.conv_general_dilated, order)(x, w))


FALLBACKS = {
    "groups": ((2, 6, 6, 4), (3, 3, 2, 8), {"feature_group_count": 2}),
    "batch groups": ((2, 6, 6, 4), (3, 3, 4, 8), {"batch_group_count": 2}),
    "lhs dilation": ((2, 6, 6, 4), (3, 3, 4, 8), {"lhs_dilation": (2, 1)}),
    "rhs dilation": ((2, 6, 6, 4), (3, 3, 4, 8), {"rhs_dilation": (2, 2)}),
    "channels first": (
        (2, 4, 6, 6),
        (8, 4, 3, 3),
        {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
    ),
    "default layout": ((2, 4, 6, 6), (8, 4, 3, 3), {"dimension_numbers": None}),
    "one dimension": (
        (2, 6, 4),
        (3, 4, 8),
        {"dimension_numbers": ("NWC", "WIO", "NWC")},
    ),
    "empty batch": ((0, 6, 6, 4), (3, 3, 4, 8), {}),
}


@pytest.mark.parametrize("case", FALLBACKS)
def test_everything_else_is_lax(case):
    image, kernel, options = FALLBACKS[case]
    options = {"dimension_numbers": LAYOUT, **options}
    x, w = jnp.ones(image), jnp.ones(kernel)
    strides = (1,) * (len(image) - 2)
    padding = ((0, 0),) * len(strides)

    def program(conv):
        run = functools.partial(conv, **options)
        return str(jax.make_jaxpr(run, static_argnums=(2, 3))(x, w, strides, padding))

    assert program(conv_general_dilated) == program(lax.conv_general_dilated)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_lax(dtype):
    x, w = problem((6, 6, 4), (3, 3, 4), dtype=dtype)
    got, expected = (
        str(jax.make_jaxpr(value_and_grads(conv, (1, 1), "SAME"))(x, w))
        for conv in (conv_general_dilated, lax.conv_general_dilated)
    )
    assert got == expected


def test_keyword_arguments_have_the_order_of_lax():
    x, w = problem((6, 6, 4), (3, 3, 4))
    position = (x, w, (1, 1), "SAME", (1, 1), (1, 1), LAYOUT, 1, 1, None, None)
    got, expected = conv_general_dilated(*position), lax.conv_general_dilated(*position)
    assert (got == expected).all(), "a swapped argument would change value or fail"


def has_slow_convolution(run, *arguments):
    """Whether the program has a convolution that XLA:CPU runs slowly in a loop."""
    text = jax.jit(run).lower(*arguments).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert lines, "the forward pass is a convolution"
    return any(
        "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" not in line
        or "feature_group_count = 1 " not in line
        or "lhs_dilate" in line.replace("lhs_dilate = [1, 1]", "")
        or "rhs_dilate" in line.replace("rhs_dilate = [1, 1]", "")
        or "true" in line.partition("reverse = [")[2].partition("]")[0]
        for line in lines
    )


@pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="other platforms use jax.lax's gradients"
)
@pytest.mark.parametrize("case", CASES)
def test_gradients_contain_only_canonical_convolutions(case):
    """The property that makes them fast; `jax.lax`'s own gradients do not have it."""
    image, kernel, stride, padding = CASES[case]
    x, w = problem(image, kernel)
    run = value_and_grads(conv_general_dilated, (stride, stride), padding)
    lax_run = value_and_grads(lax.conv_general_dilated, (stride, stride), padding)
    assert has_slow_convolution(lax_run, x, w)
    assert not has_slow_convolution(run, x, w)
    # Restarts and strengths of an attack are batched like this: images, not weights.
    images = jnp.stack([x, x])
    assert not has_slow_convolution(jax.vmap(run, (0, None)), images, w)


def test_cases_cover_the_rules():
    rules = {(c[2] == 1, c[0][2] > 4) for c in CASES.values()}
    assert rules == set(itertools.product([True, False], repeat=2))


@pytest.mark.parametrize("case", ["tutorial", "wide"])
def test_shard_map(case):
    """Each device has its part of the batch; the kernel's gradients are added up."""
    image, kernel, stride, padding = CASES[case]
    x, w = problem(image, kernel, batch=4)
    devices = jax.devices()[:2]
    if len(devices) < 2:
        pytest.skip("needs two devices")
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    parts, whole = jax.sharding.PartitionSpec("batch"), jax.sharding.PartitionSpec()
    run = value_and_grads(conv_general_dilated, (stride, stride), padding)
    mapped = jax.shard_map(
        run, mesh=mesh, in_specs=(parts, whole), out_specs=(parts, parts, whole)
    )
    assert_close(jax.jit(mapped)(x, w), run(x, w))


@pytest.mark.parametrize("explicit", [True, False])
def test_sharded_batch(explicit):
    x, w = problem((6, 6, 5), (3, 3, 4), batch=4)
    devices = jax.devices()[:2]
    if len(devices) < 2:
        pytest.skip("needs two devices")
    axis_type = jax.sharding.AxisType
    mesh = jax.sharding.Mesh(
        np.array(devices),
        ("batch",),
        axis_types=(axis_type.Explicit if explicit else axis_type.Auto,),
    )
    place = functools.partial(jax.sharding.NamedSharding, mesh)
    parts, whole = jax.sharding.PartitionSpec("batch"), jax.sharding.PartitionSpec()
    run = value_and_grads(conv_general_dilated, (1, 1), "SAME")
    got = run(jax.device_put(x, place(parts)), jax.device_put(w, place(whole)))
    assert_close(got, run(x, w))


def test_batch_in_uneven_blocks(monkeypatch):
    x, w = problem((6, 6, 5), (3, 3, 4), batch=7)
    expected = value_and_grads(lax.conv_general_dilated, (1, 1), "SAME")(x, w)
    # One image has 36 windows of 45 numbers in 4 bytes: three images a block.
    monkeypatch.setattr(conv_module, "_BLOCK_BYTES", 3 * 36 * 45 * 4)
    run = value_and_grads(conv_general_dilated, (1, 1), "SAME")
    assert "length=3" in str(jax.make_jaxpr(run)(x, w))
    assert_close(run(x, w), expected)
