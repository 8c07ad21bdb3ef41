"""The convolution agrees with `jax.lax` and keeps its gradients out of slow kernels."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

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
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (batch, *image), dtype)
    kernel = (*kernel[:2], image[-1], kernel[2])
    return x, jax.random.normal(keys[1], kernel, dtype)


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


@pytest.mark.parametrize("case", ["tutorial", "tutorial strided", "wide"])
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
    for i in range(2):
        pair = [
            a[i] if axis == 0 else a for a, axis in zip(stacked, in_axes, strict=True)
        ]
        assert_close([leaf[i] for leaf in got], run(*pair))


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


@pytest.mark.parametrize("case", ["tutorial", "tutorial strided", "wide"])
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
    got = value_and_grads(conv_general_dilated, (1, 1), "SAME")(x, w)
    expected = value_and_grads(lax.conv_general_dilated, (1, 1), "SAME")(x, w)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == dtype
        assert (a == b).all()


def test_keyword_arguments_have_the_order_of_lax():
    x, w = problem((6, 6, 4), (3, 3, 4))
    position = (x, w, (1, 1), "SAME", (1, 1), (1, 1), LAYOUT, 1, 1, None, None)
    got, expected = conv_general_dilated(*position), lax.conv_general_dilated(*position)
    assert (got == expected).all()


@pytest.mark.parametrize("case", CASES)
def test_gradients_contain_only_canonical_convolutions(case):
    """The property that makes them fast; `jax.lax`'s own gradients do not have it."""
    image, kernel, stride, padding = CASES[case]
    x, w = problem(image, kernel)

    def has_slow_convolution(conv):
        run = value_and_grads(conv, (stride, stride), padding)
        text = run.lower(x, w).as_text()
        lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
        assert lines, "the forward pass is a convolution"
        return any(
            "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" not in line
            or "lhs_dilate" in line.replace("lhs_dilate = [1, 1]", "")
            or "rhs_dilate" in line.replace("rhs_dilate = [1, 1]", "")
            or "true" in line.partition("reverse = [")[2].partition("]")[0]
            for line in lines
        )

    if jax.default_backend() != "cpu":
        pytest.skip("other platforms use the gradients of jax.lax")
    assert has_slow_convolution(lax.conv_general_dilated)
    assert not has_slow_convolution(conv_general_dilated)


def test_cases_cover_the_rules():
    rules = {(c[2] == 1, c[0][2] > 4) for c in CASES.values()}
    assert rules == set(itertools.product([True, False], repeat=2))
