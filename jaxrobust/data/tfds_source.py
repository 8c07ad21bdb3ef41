"""Data sets prepared by tensorflow-datasets, read without TensorFlow."""

import contextlib
import hashlib
import importlib.util
import logging
import os
import pathlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import rich.console
import rich.progress

from jaxrobust.data.cache import Arrays, cached, default_cache_dir
from jaxrobust.data.dataset import Dataset

# Name -> where tensorflow-datasets downloads it from.
_URLS = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
    "cifar100": "https://www.cs.toronto.edu/~kriz/",
    "svhn_cropped": "http://ufldl.stanford.edu/housenumbers/",
}
NAMES = tuple(_URLS)

_CHUNK = 1000  # Examples decoded per call: five times faster than one by one.
_CACHE_FORMAT = 1  # Increase it when what is written for the same source changes.


def load_tfds(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None,
    download: bool,
    cache_dir: str | os.PathLike[str] | None,
) -> Dataset:
    """Load one of `NAMES`; arguments as in `jaxrobust.data.load`."""
    directory = _data_dir(data_dir)
    with _errors_only():
        builder = _prepared_builder(name, directory, download)
        cache = (
            pathlib.Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        )
        arrays: dict[str, Any] = cached(
            cache / _cache_name(name, builder), lambda: _decode(builder)
        )
    names = tuple(builder.info.features["label"].names)
    return Dataset(name, class_names=names, **arrays)


def _data_dir(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    # As in tensorflow-datasets, which reads the variable only when it is imported.
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(chosen).expanduser()


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Hide warnings about folders that are not there yet and faster PNG decoders."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _import_tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            f"This data set is read by tensorflow-datasets, which cannot be imported "
            f"({error}): pip install tensorflow-datasets importlib_resources pillow"
        ) from error
    return tensorflow_datasets


def _prepared_builder(name: str, directory: pathlib.Path, download: bool) -> Any:
    """Return a builder whose data are there; download them where that can succeed."""
    tfds = _import_tfds()
    builder = tfds.builder(name, data_dir=directory, try_gcs=False)
    if builder.is_prepared():
        return builder
    if not download:
        raise _not_found(name, builder, "download=False forbids to download it.")
    if not _has_tensorflow():
        raise _not_found(name, builder, "To download it, TensorFlow is needed.")
    # tensorflow-datasets retries for minutes where there is no network.
    if not _is_reachable(_URLS[name]):
        raise _not_found(name, builder, f"{_URLS[name]} cannot be reached.")
    builder = tfds.builder(
        name, data_dir=directory, try_gcs=False, file_format="array_record"
    )
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    return builder


def _has_tensorflow() -> bool:
    return importlib.util.find_spec("tensorflow") is not None


def _is_reachable(url: str, timeout: float = 5.0) -> bool:
    """Whether any HTTP answer, even a refusal, comes from `url` within `timeout` s."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=timeout).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _not_found(name: str, builder: Any, reason: str) -> FileNotFoundError:
    wanted = pathlib.Path(builder.data_path)
    directory = wanted.parent.parent
    versions = sorted(path.name for path in wanted.parent.glob("[0-9]*"))
    if not directory.is_dir():
        found = f"the directory {directory} does not exist"
    elif versions:
        found = f"found version {', '.join(versions)} only"
    else:
        found = f"nothing named {name} in {directory}"
    return FileNotFoundError(
        f"{name} is not prepared: no {wanted / 'dataset_info.json'} ({found}). "
        f"{reason}\n"
        "Either name the directory that holds the prepared data: data_dir=..., "
        "--data-dir or the environment variable TFDS_DATA_DIR;\n"
        "or install the downloader, pip install 'jaxrobust[download]', and load it "
        "once with a network;\n"
        "or use digits, which needs no files."
    )


def _cache_name(name: str, builder: Any) -> str:
    """Name the cache after the content of the source, wherever the source lies."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(builder.data_path).iterdir()):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        if path.name == "dataset_info.json":
            digest.update(path.read_bytes())
    return f"{name}-{builder.version}-{digest.hexdigest()[:16]}-v{_CACHE_FORMAT}.npz"


def _decode(builder: Any) -> Arrays:
    """Decode both parts, with a progress bar where someone is there to see it."""
    try:
        sources = builder.as_data_source(split={"train": "train", "test": "test"})
    except NotImplementedError as error:
        raise ValueError(
            f"{builder.data_path} is not in array_record form, which is needed to read "
            "it without TensorFlow. Give another data_dir, or convert it once, where "
            f"TensorFlow is installed: tfds convert_format --dataset_version_dir="
            f"{builder.data_path} --out_file_format=array_record"
        ) from error
    console = rich.console.Console(stderr=True)
    arrays: Arrays = {}
    with rich.progress.Progress(
        console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        for part, source in sources.items():
            task = progress.add_task(f"{builder.name} {part}", total=len(source))
            x, y = _decode_part(source, builder.info.features, progress, task)
            arrays |= {f"x_{part}": x, f"y_{part}": y}
    return arrays


def _decode_part(
    source: Any, features: Any, progress: rich.progress.Progress, task: Any
) -> tuple[np.ndarray, np.ndarray]:
    x = np.empty((len(source), *features["image"].shape), np.uint8)
    y = np.empty(len(source), np.int32)
    ids: list[str] = []
    for start in range(0, len(source), _CHUNK):
        chunk = range(start, min(start + _CHUNK, len(source)))
        for i, example in zip(chunk, source.__getitems__(chunk), strict=True):
            x[i], y[i] = example["image"], example["label"]
            if "id" in example:
                ids.append(example["id"])
        progress.advance(task, len(chunk))
    if ids:
        # Records are stored in a hashed order; ids count the original one, zero-padded.
        original = np.argsort(np.asarray(ids), kind="stable")
        x, y = x[original], y[original]
    return x, y
