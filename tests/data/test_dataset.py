"""The Dataset value."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxrobust.data import Dataset


def make(**changes) -> Dataset:
    x = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2, 1)
    y = np.array([0, 1, 0, 1, 0, 1], np.int32)
    arguments = {
        "name": "tiny",
        "x_train": x,
        "y_train": y,
        "x_test": x[:4],
        "y_test": y[:4],
        "class_names": ("even", "odd"),
    }
    return Dataset(**{**arguments, **changes})


def test_properties():
    data = make()
    assert data.num_classes == 2
    assert data.input_shape == (2, 2, 1)
    assert data.scale == 255
    assert repr(data) == (
        "Dataset('tiny', 6 train, 4 test, input_shape=(2, 2, 1), num_classes=2)"
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"  # pyrefly: ignore[read-only]


def test_images_are_exact_in_numpy_and_within_one_ulp_under_jit():
    data = make()
    pixels = np.arange(256, dtype=np.uint8)
    images = data.images(pixels)
    compiled = jax.jit(data.images)(pixels)
    assert isinstance(images, np.ndarray) and images.dtype == np.float32
    assert isinstance(compiled, jax.Array) and compiled.dtype == np.float32
    assert np.array_equal(images, (np.arange(256) / 255).astype(np.float32))
    np.testing.assert_array_max_ulp(images, np.asarray(compiled), maxulp=1)
    assert 0 == compiled.min() and compiled.max() == 1


def test_subset_keeps_the_first():
    data = make()
    small = data.subset(num_train=3, num_test=2)
    assert np.array_equal(small.x_train, data.x_train[:3])
    assert np.array_equal(small.y_test, data.y_test[:2])
    assert len(data.subset(num_test=1).x_train) == 6
    assert len(data.subset(num_train=0).x_train) == 0


@pytest.mark.parametrize("argument", [{"num_train": 7}, {"num_test": -1}])
def test_subset_of_more_than_there_is(argument):
    (name, num), *_ = argument.items()
    with pytest.raises(ValueError, match=f"{name}={num}, but tiny has"):
        make().subset(**argument)


def test_split_covers_the_training_part():
    training, validation = make().split(2, seed=1)
    assert sorted([*training, *validation]) == list(range(6))
    assert sorted(make().y_train[validation]) == [0, 1]
    assert np.array_equal(validation, make().split(2, seed=1)[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((6, 2, 2, 1), np.float32)}, "x_train is float32"),
        ({"x_test": np.zeros((4, 2, 2), np.uint8)}, "x_test is uint8"),
        ({"y_test": np.zeros(3, np.int32)}, r"y_test is int32 \(3,\)"),
        ({"y_test": np.zeros(4, np.int64)}, "y_test is int64"),
        ({"class_names": ("even",)}, "y_train holds labels from 0 to 1"),
    ],
)
def test_inconsistent_arrays(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)
