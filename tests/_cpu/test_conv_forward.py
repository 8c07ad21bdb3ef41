"""All forms of a convolution are the same sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxrobust._cpu import conv_forward, winograd

pytestmark = pytest.mark.thin

# (images, kernel, strides, padding): pads on one side, larger than the kernel and
# negative, strides that leave pixels, widths that no stride divides.
CASES = {
    "same": ((3, 8, 6, 5), (3, 3, 5, 4), (1, 1), ((1, 1), (1, 1))),
    "five": ((2, 7, 8, 3), (5, 5, 3, 4), (1, 1), ((2, 2), (2, 2))),
    "valid": ((3, 7, 8, 3), (3, 4, 3, 4), (1, 1), ((0, 0), (0, 0))),
    "strided": ((3, 9, 7, 3), (3, 3, 3, 4), (2, 2), ((0, 1), (1, 1))),
    "gaps": ((3, 9, 8, 3), (1, 1, 3, 4), (2, 3), ((0, 0), (0, 0))),
    "one side": ((3, 6, 7, 3), (3, 4, 3, 2), (1, 2), ((0, 2), (3, 0))),
    "large pads": ((3, 5, 5, 3), (2, 2, 3, 2), (2, 1), ((3, 2), (2, 4))),
    "one image": ((1, 8, 6, 5), (3, 3, 5, 1), (1, 1), ((1, 1), (1, 1))),
    "negative pads": ((3, 8, 9, 3), (3, 3, 3, 2), (1, 2), ((-1, 1), (0, -2))),
}


def reference(x, kernel, strides, padding):
    """The convolution in double precision."""
    with jax.enable_x64(True):
        x, kernel = (np.asarray(array, np.float64) for array in (x, kernel))
        x, padding = conv_forward.cut(x, padding)  # XLA:CPU's negative pads are wrong
        return np.asarray(
            lax.conv_general_dilated(
                x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )


def problem(image, kernel):
    rng = np.random.default_rng(0)
    arrays = (rng.normal(size=shape) for shape in (image, kernel))
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


@pytest.mark.parametrize(
    "form", ["direct", "side by side", "product", "several pixels"]
)
@pytest.mark.parametrize("case", CASES)
def test_forms(case, form):
    image, kernel, strides, padding = CASES[case]
    x, kernel = problem(image, kernel)
    got = conv_forward.convolve(
        x, kernel, window_strides=strides, padding=padding, form=form
    )
    # Sums of at most 75 products, each rounded to 6e-8 of entries of order one.
    np.testing.assert_allclose(
        got, reference(x, kernel, strides, padding), rtol=0, atol=5e-5
    )


@pytest.mark.parametrize(
    ("image", "padding"),
    [
        ((5, 6, 8, 7), ((1, 1), (1, 1))),
        ((3, 8, 6, 2), ((0, 0), (2, 0))),
        ((1, 3, 5, 4), ((1, 2), (0, 1))),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 2**23])
def test_winograd(image, padding, block_bytes, monkeypatch):
    """One image at a time, and all at once."""
    monkeypatch.setattr(winograd, "_BLOCK_BYTES", block_bytes)
    x, kernel = problem(image, (3, 3, image[-1], 6))
    got = conv_forward.convolve(
        x, kernel, window_strides=(1, 1), padding=padding, form="winograd"
    )
    # As above; the transforms add entries of one tile, which are of the same order.
    np.testing.assert_allclose(
        got, reference(x, kernel, (1, 1), padding), rtol=0, atol=5e-5
    )


def test_winograd_is_as_accurate():
    """Its mean error, against sums in double precision, is a plain convolution's."""
    x, kernel = problem((16, 8, 8, 256), (3, 3, 256, 128))
    arguments = (1, 1), ((1, 1), (1, 1))
    exact = reference(x, kernel, *arguments)

    def error(form):
        got = conv_forward.convolve(
            x, kernel, window_strides=(1, 1), padding=arguments[1], form=form
        )
        return np.sqrt(np.mean((np.asarray(got) - exact) ** 2))

    # Measured: equal to within a third. The factor leaves room for other hardware.
    assert error("winograd") < 3 * error("direct")


@pytest.mark.parametrize(
    ("image", "kernel", "stride", "form"),
    [
        ((16, 16, 16, 128), (3, 3, 128, 128), 1, "winograd"),
        ((16, 4, 4, 512), (3, 3, 512, 512), 1, "product"),
        ((100, 28, 28, 1), (4, 4, 1, 16), 2, "product"),
        ((1000, 28, 28, 1), (4, 4, 1, 16), 2, "side by side"),
        ((100, 28, 28, 1), (5, 5, 1, 32), 1, "side by side"),
        ((100, 28, 28, 32), (5, 5, 32, 1), 1, "several pixels"),
        ((100, 14, 14, 32), (5, 5, 32, 64), 1, "side by side"),
        ((1, 14, 14, 32), (5, 5, 32, 64), 1, "direct"),
        ((100, 14, 14, 64), (5, 5, 64, 128), 1, "direct"),
    ],
)
def test_choice_on_two_cores(image, kernel, stride, form, monkeypatch):
    monkeypatch.setattr(conv_forward, "_num_cores", lambda: 2)
    x, kernel = (jnp.zeros(shape, jnp.float32) for shape in (image, kernel))
    size = tuple(n // stride for n in image[1:3])
    assert conv_forward._fastest(x, kernel, (stride, stride), size) == form


def test_one_core_has_nothing_to_divide(monkeypatch):
    monkeypatch.setattr(conv_forward, "_num_cores", lambda: 1)
    x, kernel = jnp.zeros((100, 14, 14, 32)), jnp.zeros((5, 5, 32, 64))
    assert conv_forward._fastest(x, kernel, (1, 1), (14, 14)) == "direct"
