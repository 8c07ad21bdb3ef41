"""The convolution agrees with `jax.lax` and keeps its gradients out of slow kernels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxrobust as jr
from jaxrobust._cpu import conv_primitive

pytestmark = pytest.mark.thin

if jax.default_backend() != "cpu":
    pytest.skip("other platforms keep jax.lax's gradients", allow_module_level=True)

LAYOUT = ("NHWC", "HWIO", "NHWC")

# (image, kernel, strides, padding): every rule of the implementation at least once,
# few and many channels, even and odd sizes, pixels that no window reads, and pads
# larger than the kernel.
MANY = conv_primitive._MOST_PHASE_CHANNELS + 1
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
    "many channels strided": ((5, 6, MANY), (3, 3, 2), 2, "SAME"),
    "gaps between windows": ((8, 8, 5), (2, 2, 7), 3, ((1, 1), (1, 1))),
    "large pads, grey": ((5, 5, 1), (2, 2, 2), 2, ((3, 2), (2, 4))),
}


def problem(image, kernel, batch=3, dtype=jnp.float32):
    """Returns random images and a random kernel."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, *image)), dtype)
    kernel = (*kernel[:2], image[-1], kernel[2])
    return x, jnp.asarray(rng.normal(size=kernel), dtype)


def fast_conv(x, kernel, strides, padding, **options):
    """Return what `jax.lax.conv_general_dilated` returns, by the fast primitive."""

    def conv(x, kernel):
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)

    return jr.fast_convolutions(conv)(x, kernel)


def value_and_grads(conv, strides, padding, layout=LAYOUT):
    """Return a compiled function: output and both gradients of a convolution."""

    def run(x, kernel):
        out, vjp = jax.vjp(
            lambda x, kernel: conv(
                x, kernel, strides, padding, dimension_numbers=layout
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
    got = value_and_grads(fast_conv, strides, padding)(x, w)
    expected = value_and_grads(lax.conv_general_dilated, strides, padding)(x, w)
    assert_close(got, expected)


@pytest.mark.parametrize(
    "layout",
    [("NCHW", "OIHW", "NCHW"), ("CHWN", "IHWO", "NHWC"), ("HNWC", "WOIH", "CWNH")],
)
@pytest.mark.parametrize("case", ["tutorial strided", "wide"])
def test_layouts(case, layout):
    image, kernel, stride, padding = CASES[case]
    x, w = problem(image, kernel)
    x = x.transpose(*("NHWC".index(axis) for axis in layout[0]))
    w = w.transpose(*("HWIO".index(axis) for axis in layout[1]))
    arguments = (stride, stride), padding, layout
    got = value_and_grads(fast_conv, *arguments)
    assert not has_slow_convolution(got, x, w)
    assert_close(got(x, w), value_and_grads(lax.conv_general_dilated, *arguments)(x, w))


def test_different_strides_per_axis():
    x, w = problem((9, 8, 5), (3, 2, 4))
    got = value_and_grads(fast_conv, (1, 2), "SAME")(x, w)
    assert_close(got, value_and_grads(lax.conv_general_dilated, (1, 2), "SAME")(x, w))


@pytest.mark.parametrize("channels", [1, 5])
def test_negative_padding_cuts_the_image(channels):
    # `jax.lax` itself reads outside of the image here on the CPU (JAX 0.10.2), so the
    # reference cuts first.
    x, w = problem((7, 8, channels), (3, 3, 4))
    got = value_and_grads(fast_conv, (1, 1), ((-1, 1), (2, -2)))(x, w)
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
    run = value_and_grads(fast_conv, (stride, stride), padding)
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

    got, expected = ascend(fast_conv)(x), ascend(lax.conv_general_dilated)(x)
    assert_close(got, expected)


@pytest.mark.parametrize("axes", [(1, None), (None, 2), (1, 2)])
def test_gradient_of_vmap(axes):
    """The batching rule itself, at axes that are not the first."""
    x, w = problem((6, 7, 5), (3, 3, 4))
    stacked = tuple(
        a if axis is None else jnp.stack([a, -a, 2 * a], axis)
        for a, axis in zip((x, w), axes, strict=True)
    )

    def gradients(conv):
        one = functools.partial(
            conv, strides=(2, 1), padding="SAME", dimension_numbers=LAYOUT
        )
        many = jax.vmap(lambda x, w: one(x, w), axes)
        return jax.jit(jax.grad(lambda x, w: jnp.sin(many(x, w)).sum(), (0, 1)))

    def lax_conv(x, w, strides, **options):
        return lax.conv_general_dilated(x, w, strides, **options)

    assert_close(gradients(fast_conv)(*stacked), gradients(lax_conv)(*stacked))


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
        if order == "forward":
            return jax.jit(lambda x, w: jax.jvp(value, (x, w), (w.sum() * x, w)))
        return jax.jit(lambda x, w: jax.jvp(jax.grad(value, 1), (x, w), (x, w)))

    for order in ("reverse over reverse", "forward over reverse", "forward"):
        got = penalty(fast_conv, order)(x, w)
        assert_close(got, penalty(lax.conv_general_dilated, order)(x, w))


def has_slow_convolution(run, *arguments):
    """Whether the program has a convolution that XLA:CPU runs slowly in a loop."""
    text = jax.jit(run).lower(*arguments).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    return any(
        "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" not in line
        or "feature_group_count = 1 " not in line
        or "lhs_dilate" in line.replace("lhs_dilate = [1, 1]", "")
        or "rhs_dilate" in line.replace("rhs_dilate = [1, 1]", "")
        or "true" in line.partition("reverse = [")[2].partition("]")[0]
        for line in lines
    )


@pytest.mark.parametrize("case", CASES)
def test_gradients_contain_only_canonical_convolutions(case):
    """The property that makes them fast; `jax.lax`'s own gradients do not have it."""
    image, kernel, stride, padding = CASES[case]
    x, w = problem(image, kernel)
    run = value_and_grads(fast_conv, (stride, stride), padding)
    lax_run = value_and_grads(lax.conv_general_dilated, (stride, stride), padding)
    assert has_slow_convolution(lax_run, x, w)
    assert not has_slow_convolution(run, x, w)
    # Restarts and strengths of an attack are batched like this: images, not weights.
    images = jnp.stack([x, x])
    assert not has_slow_convolution(jax.vmap(run, (0, None)), images, w)


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
    run = value_and_grads(fast_conv, (stride, stride), padding)
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
    run = value_and_grads(fast_conv, (1, 1), "SAME")
    got = run(jax.device_put(x, place(parts)), jax.device_put(w, place(whole)))
    assert_close(got, run(x, w))


def test_batch_in_uneven_blocks(monkeypatch):
    x, w = problem((6, 6, 5), (3, 3, 4), batch=7)
    expected = value_and_grads(lax.conv_general_dilated, (1, 1), "SAME")(x, w)
    # One image has 36 windows of 45 numbers in 4 bytes: three images a block.
    monkeypatch.setattr(conv_primitive, "_BLOCK_BYTES", 3 * 36 * 45 * 4)
    run = value_and_grads(fast_conv, (1, 1), "SAME")
    assert "length=3" in str(jax.make_jaxpr(run)(x, w))
    assert_close(run(x, w), expected)


def test_a_kernel_larger_than_the_image():
    """No window fits: the result is empty, and both gradients are zero."""
    x, kernel = jnp.ones((3, 2, 2, 1)), jnp.ones((3, 3, 1, 4))

    def total(x, kernel):
        fast = jr.fast_convolutions(
            lambda x, kernel: lax.conv_general_dilated(
                x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )
        return fast(x, kernel).sum()

    dx, dkernel = jax.grad(total, (0, 1))(x, kernel)
    np.testing.assert_array_equal(dx, jnp.zeros_like(x))
    np.testing.assert_array_equal(dkernel, jnp.zeros_like(kernel))
