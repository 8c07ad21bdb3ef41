"""load: names, digits, and what is imported."""

import subprocess
import sys

import numpy as np
import pytest

from jaxrobust.data import NAMES, load


def test_names():
    assert NAMES[0] == "digits"
    assert set(NAMES) == {
        *("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn_cropped")
    }


@pytest.mark.parametrize(("name", "close"), [("cifar-10", "cifar10"), ("MNIST", None)])
def test_unknown_name(name, close):
    with pytest.raises(ValueError, match="need one of digits, mnist") as error:
        load(name)
    assert (f"Did you mean {close!r}?" in str(error.value)) == (close is not None)


def test_digits_facts():
    data = load("digits")
    assert data.x_train.shape == (1437, 8, 8, 1) and data.x_test.shape == (360, 8, 8, 1)
    assert data.scale == 16 and data.class_names == tuple("0123456789")
    x = np.concatenate([data.x_train, data.x_test])
    y = np.concatenate([data.y_train, data.y_test])
    assert x.min() == 0 and x.max() == 16
    assert data.images(x).max() == 1
    # Class counts of the UCI test file, optdigits.names.
    assert np.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_split_is_stratified_disjoint_and_complete():
    from sklearn.datasets import load_digits

    data = load("digits")
    counts = np.bincount(data.y_test)
    # 360 / 1797 of 174 to 183 is 34.9 to 36.7.
    assert counts.min() >= 34 and counts.max() <= 37
    images = [*data.x_train, *data.x_test]
    original = load_digits().images.astype(np.uint8)
    assert sorted(x.tobytes() for x in images) == sorted(x.tobytes() for x in original)


def test_digits_are_deterministic():
    first, second = load(), load("digits")
    assert np.array_equal(first.x_test, second.x_test)
    # Recorded: a change of these labels changes every published result on digits.
    assert first.y_test[:12].tolist() == [3, 1, 5, 6, 4, 9, 7, 0, 2, 8, 3, 1]


def test_import_is_light():
    code = (
        "import sys, jaxrobust.data\n"
        "heavy = {'tensorflow_datasets', 'sklearn', 'tensorflow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
