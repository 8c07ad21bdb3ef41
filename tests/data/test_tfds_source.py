"""The tensorflow-datasets source, on tiny prepared data and on the real ones."""

import io
import pathlib
import socket
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from jaxrobust.data import load, tfds_source

SIZES = {"train": 20, "test": 10}


def pixels(split: str, i: int, shape: tuple[int, ...]) -> np.ndarray:
    seed = SIZES[split] * 100 + i
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def prepare(name: str, directory: pathlib.Path) -> None:
    """Write a tiny data set in array_record form, by the real builder, offline."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=directory, file_format="array_record")
    shape, has_id = builder.info.features["image"].shape, "id" in builder.info.features

    def examples(split):
        for i in range(SIZES[split]):
            png = io.BytesIO()
            Image.fromarray(pixels(split, i, shape).squeeze()).save(png, "png")
            png.seek(0)
            original = {"id": f"{split}_{i:05d}"} if has_id else {}
            yield i, {"image": png, "label": i % 10, **original}

    builder._split_generators = lambda _: {split: examples(split) for split in SIZES}
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=config)


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("tiny")
    prepare("mnist", directory)
    prepare("cifar10", directory)
    return directory


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_order_of_cifar10_is_the_original_one(tiny_dir, tmp_path):
    data = load("cifar10", data_dir=tiny_dir, cache_dir=tmp_path)
    for split, x, y in (
        ("train", data.x_train, data.y_train),
        ("test", data.x_test, data.y_test),
    ):
        expected = [pixels(split, i, (32, 32, 3)) for i in range(SIZES[split])]
        assert np.array_equal(x, expected)
        assert y.tolist() == [i % 10 for i in range(SIZES[split])]


def test_mnist_without_ids(tiny_dir, tmp_path):
    data = load("mnist", data_dir=tiny_dir, cache_dir=tmp_path)
    assert data.input_shape == (28, 28, 1) and data.scale == 255
    assert data.class_names == tuple("0123456789")
    expected = {pixels("test", i, (28, 28, 1)).tobytes(): i for i in range(10)}
    assert {
        x.tobytes(): int(y) for x, y in zip(data.x_test, data.y_test, strict=True)
    } == expected


def test_environment_variables_name_the_directories(tiny_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny_dir))
    monkeypatch.setenv("JAXROBUST_CACHE_DIR", str(tmp_path))
    assert len(load("mnist").x_train) == 20
    assert len(list(tmp_path.glob("mnist-*.npz"))) == 1


def test_second_load_decodes_nothing(tiny_dir, tmp_path, monkeypatch):
    first = load("mnist", data_dir=tiny_dir, cache_dir=tmp_path)
    monkeypatch.setattr(tfds_source, "_decode", None)
    second = load("mnist", data_dir=tiny_dir, cache_dir=tmp_path)
    assert np.array_equal(first.x_train, second.x_train)


def test_other_source_is_not_taken_from_the_cache(tiny_dir, tmp_path, monkeypatch):
    load("mnist", data_dir=tiny_dir, cache_dir=tmp_path / "cache")
    monkeypatch.setitem(SIZES, "test", 7)
    prepare("mnist", tmp_path / "other")
    data = load("mnist", data_dir=tmp_path / "other", cache_dir=tmp_path / "cache")
    assert len(data.x_test) == 7


def test_is_silent_without_a_terminal(tiny_dir, tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("mnist", data_dir=tiny_dir, cache_dir=tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("download", "has_tensorflow", "reason"),
    [
        (False, True, "download=False"),
        (True, False, "TensorFlow is needed"),
        (True, True, "cannot be reached"),
    ],
)
def test_missing_data_fail_fast_and_say_what_to_do(
    tmp_path, monkeypatch, no_network, download, has_tensorflow, reason
):
    monkeypatch.setattr(tfds_source, "_has_tensorflow", lambda: has_tensorflow)
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError, match=reason) as error:
        load("cifar10", data_dir=tmp_path, download=download)
    assert time.perf_counter() - start < 5
    message = str(error.value)
    for hint in (str(tmp_path / "cifar10"), "TFDS_DATA_DIR", "jaxrobust[download]"):
        assert hint in message


def test_data_dir_that_does_not_exist(tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(FileNotFoundError, match=f"{missing} does not exist"):
        load("mnist", data_dir=missing, download=False)
    assert not missing.exists()


def test_other_version_is_named(tmp_path):
    (tmp_path / "mnist" / "1.0.0").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"found version 1\.0\.0 only"):
        load("mnist", data_dir=tmp_path, download=False)


def test_tfrecord_form_is_refused_with_a_way_out(tiny_dir, tmp_path):
    source = next((tiny_dir / "mnist").iterdir())
    copy = tmp_path / "mnist" / source.name
    copy.mkdir(parents=True)
    for path in source.glob("*.json"):
        text = path.read_text().replace("array_record", "tfrecord")
        (copy / path.name).write_text(text)
    with pytest.raises(ValueError, match=r"not in array_record form.*convert_format"):
        load("mnist", data_dir=tmp_path, cache_dir=tmp_path)


def load_real(name, data_dir, tmp_path_factory):
    if not (data_dir / name).is_dir():
        pytest.skip(f"no {name} in {data_dir}")
    cache = tmp_path_factory.mktemp("cache")
    return load(name, data_dir=data_dir, download=False, cache_dir=cache)


def test_real_mnist(data_dir, tmp_path_factory):
    data = load_real("mnist", data_dir, tmp_path_factory)
    assert data.x_train.shape == (60000, 28, 28, 1)
    assert data.x_test.shape == (10000, 28, 28, 1)
    # Class counts of the original files.
    assert np.bincount(data.y_train).tolist() == [
        *(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    ]
    assert np.bincount(data.y_test).tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
    # The well-known mean and standard deviation of the training images.
    images = data.images(data.x_train)
    assert images.mean(dtype=np.float64) == pytest.approx(0.1307, abs=5e-5)
    assert images.std(dtype=np.float64) == pytest.approx(0.3081, abs=5e-5)


def test_real_cifar10(data_dir, tmp_path_factory):
    data = load_real("cifar10", data_dir, tmp_path_factory)
    assert data.x_train.shape == (50000, 32, 32, 3)
    assert np.bincount(data.y_train).tolist() == [5000] * 10
    assert np.bincount(data.y_test).tolist() == [1000] * 10
    # The original order: test_batch.bin begins cat, ship, ship, airplane, frog.
    names = [data.class_names[label] for label in data.y_test[:5]]
    assert names == ["cat", "ship", "ship", "airplane", "frog"]
    # The well-known channel means of the training images.
    means = data.x_train.mean(axis=(0, 1, 2), dtype=np.float64) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=6e-5)
