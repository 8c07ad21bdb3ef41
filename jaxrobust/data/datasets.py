"""One function that loads every data set by name."""

import difflib
import os

from jaxrobust.data import tfds_source
from jaxrobust.data.dataset import Dataset
from jaxrobust.data.digits import load_digits

NAMES = ("digits", *tfds_source.NAMES)


def load(
    name: str = "digits",
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Load a data set into memory as uint8 arrays.

    `digits` comes with scikit-learn. The others are read by tensorflow-datasets,
    without TensorFlow, from its array_record form; they are decoded once (MNIST: some
    seconds) and kept in one uncompressed file in `cache_dir`.

    The order is fixed. `cifar10`, `cifar100` and `svhn_cropped` are in their original
    order, so that "the first 1,000 test images" are those of the literature. `mnist`
    and `fashion_mnist` are in the hashed order of tensorflow-datasets: fixed, but not
    the original one. `digits` is shuffled.

    Args:
      name: One of `NAMES`.
      data_dir: Where tensorflow-datasets keeps its data. Default: the environment
        variable TFDS_DATA_DIR, else ~/tensorflow_datasets. `digits` needs none.
      download: Whether a missing data set may be downloaded (needs TensorFlow).
      cache_dir: Where decoded arrays are kept. Default: the environment variable
        JAXROBUST_CACHE_DIR, else $XDG_CACHE_HOME/jaxrobust, else ~/.cache/jaxrobust.

    Returns:
      A `Dataset`.

    Raises:
      ValueError: If the name is unknown, or the data lie there in a form that cannot be
        read without TensorFlow.
      FileNotFoundError: If the data set is not there and cannot be downloaded; says
        where it was sought and what to do.

    Example:
      >>> data = load("digits")
      >>> data
      Dataset('digits', 1437 train, 360 test, input_shape=(8, 8, 1), num_classes=10)
    """
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"Unknown data set {name!r}; need one of {', '.join(NAMES)}.{hint}"
        )
    if name == "digits":
        return load_digits()
    return tfds_source.load_tfds(
        name, data_dir=data_dir, download=download, cache_dir=cache_dir
    )
