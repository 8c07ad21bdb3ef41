"""pad_crop_flip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.data import pad_crop_flip

pytestmark = pytest.mark.thin


def batch(num: int = 8, dtype: type = np.uint8) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(1, 256, (num, 6, 5, 3))
    return pixels.astype(dtype)


def candidates(image: np.ndarray, padding: int) -> set[bytes]:
    """Every shift of the image and of its mirror image, by brute force."""
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    height, width, _ = image.shape
    crops = [
        padded[top : top + height, left : left + width]
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    ]
    return {c.tobytes() for c in crops} | {c[:, ::-1].tobytes() for c in crops}


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_each_result_is_a_shift_and_all_shifts_occur(dtype):
    image = batch(1, dtype)
    results = pad_crop_flip(jax.random.key(0), np.repeat(image, 400, 0), padding=1)
    assert results.dtype == dtype and results.shape == (400, 6, 5, 3)
    # 18 outcomes in 400 draws: one is missed with probability 18 (17/18)^400 = 2e-9.
    assert {r.tobytes() for r in np.asarray(results)} == candidates(image[0], 1)


def test_half_are_mirrored():
    image = np.repeat(batch(1), 2000, 0)
    results = np.asarray(pad_crop_flip(jax.random.key(1), image, padding=0))
    mirrored = np.all(results == image[:, :, ::-1], axis=(1, 2, 3))
    kept = np.all(results == image, axis=(1, 2, 3))
    assert np.all(mirrored != kept)
    # Standard deviation 0.011; the key is fixed, so the outcome is too.
    assert abs(mirrored.mean() - 0.5) < 0.05


def test_nothing_to_do_is_the_identity():
    x = batch()
    assert np.array_equal(pad_crop_flip(jax.random.key(0), x, padding=0, flip=False), x)


@pytest.mark.slow
def test_example_depends_on_its_own_key_and_image_only():
    x, keys = batch(), jax.random.split(jax.random.key(0), 8)
    whole = pad_crop_flip(keys, x)
    for i in range(8):
        assert np.array_equal(pad_crop_flip(keys[i : i + 1], x[i : i + 1])[0], whole[i])
    # Other neighbours: other images and other keys, all but at place 3.
    others = jax.random.split(jax.random.key(1), 8).at[3].set(keys[3])
    changed = np.where(np.arange(8)[:, None, None, None] == 3, x, 255 - x)
    assert np.array_equal(pad_crop_flip(others, changed)[3], whole[3])
    # And it does depend on its own key.
    assert not np.array_equal(pad_crop_flip(others, x), whole)


def test_one_key_does_not_depend_on_the_batch_size():
    x, key = batch(), jax.random.key(5)
    assert np.array_equal(pad_crop_flip(key, x)[:3], pad_crop_flip(key, x[:3]))


@pytest.mark.slow
def test_jit_vmap_and_scan_agree_with_eager():
    x, keys = jnp.stack([batch(), 255 - batch()]), jax.random.split(jax.random.key(2))
    eager = np.stack([pad_crop_flip(k, part) for k, part in zip(keys, x, strict=True)])
    assert np.array_equal(jax.jit(pad_crop_flip)(keys[0], x[0]), eager[0])
    assert np.array_equal(jax.vmap(pad_crop_flip)(keys, x), eager)
    _, scanned = jax.lax.scan(lambda _, kx: (None, pad_crop_flip(*kx)), None, (keys, x))
    assert np.array_equal(scanned, eager)


@pytest.mark.parametrize(
    ("key", "x", "options", "error", "message"),
    [
        (0, batch(), {}, TypeError, "key=0 is not a PRNG key"),
        (None, batch(), {}, TypeError, "got no key"),
        (batch(), jax.random.key(0), {}, TypeError, "exchange the arguments"),
        (jax.random.key(0), batch(), {"channel_axis": 2}, ValueError, "channel_axis=2"),
        (jax.random.key(0), batch()[0], {}, ValueError, r"got images \(6, 5, 3\)"),
        (
            jax.random.split(jax.random.key(0), 3),
            batch(),
            {},
            ValueError,
            r"keys \(3,\)",
        ),
        (jax.random.key(0), batch(), {"padding": -1}, ValueError, "padding=-1"),
    ],
)
def test_misuse(key, x, options, error, message):
    with pytest.raises(error, match=message):
        pad_crop_flip(key, x, **options)


def test_legacy_keys_are_keys():
    """`jax.random.PRNGKey(seed)`, and a batch of them."""
    x, keys = batch(), jax.random.split(jax.random.key(3), 8)
    expected = pad_crop_flip(jax.random.key(3), x)
    assert np.array_equal(pad_crop_flip(jax.random.PRNGKey(3), x), expected)
    data = jax.random.key_data(keys)
    assert np.array_equal(pad_crop_flip(data, x), pad_crop_flip(keys, x))


@pytest.mark.parametrize("channel_axis", [None, 1, -3])
def test_channels_first_are_moved_as_channels_last(channel_axis):
    """The pixels are shifted, and not the channels."""
    x, key = batch(), jax.random.key(7)
    first = np.moveaxis(x, -1, 1)
    result = pad_crop_flip(key, first, padding=2, channel_axis=channel_axis)
    expected = pad_crop_flip(key, x, padding=2, channel_axis=-1)
    assert result.dtype == x.dtype
    assert np.array_equal(np.moveaxis(result, 1, -1), expected)
    assert np.array_equal(expected, pad_crop_flip(key, x, padding=2))


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (8, 6, 5, 16), (8, 3, 3, 1)])
def test_a_layout_that_cannot_be_seen_has_to_be_said(shape):
    """Small images and many channels."""
    x = np.arange(np.prod(shape)).reshape(shape)
    with pytest.raises(ValueError, match="say channel_axis=-1 for"):
        pad_crop_flip(jax.random.key(0), x)
    for axis in (1, -1):
        result = pad_crop_flip(jax.random.key(0), x, padding=1, channel_axis=axis)
        assert result.shape == shape
