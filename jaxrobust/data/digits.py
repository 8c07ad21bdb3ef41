"""The digits that come with scikit-learn: real data, no download."""

from typing import Any

import numpy as np

from jaxrobust.data.dataset import Dataset
from jaxrobust.data.splits import stratified_split

# A fifth of 1,797; the sizes and the seed define the split: never change them.
NUM_TEST = 360
SEED = 0


def load_digits() -> Dataset:
    """Load the 1,797 handwritten digits of scikit-learn, 8 x 8 pixels from 0 to 16.

    Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI, test part.
    The data set has no split of its own: this one is 1,437 + 360, random, stratified
    and fixed. The writers of test images also wrote training images, so accuracy is
    higher than on new writers.

    Returns:
      A `Dataset` whose `scale` is 16.

    Raises:
      ImportError: If scikit-learn is absent.
    """
    try:
        from sklearn.datasets import load_digits as load_bunch
    except ImportError as error:
        raise ImportError(
            f"digits comes with scikit-learn, which cannot be imported ({error}): "
            "pip install scikit-learn"
        ) from error
    bunch: Any = load_bunch()
    x = bunch.images.astype(np.uint8)[..., None]
    y = bunch.target.astype(np.int32)
    train, test = stratified_split(y, NUM_TEST, seed=SEED)
    names = tuple(str(name) for name in bunch.target_names)
    return Dataset("digits", x[train], y[train], x[test], y[test], names, scale=16.0)
