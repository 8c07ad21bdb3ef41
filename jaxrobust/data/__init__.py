"""Image classification data as uint8 NumPy arrays, and augmentation on the device.

Importing this package imports neither scikit-learn nor tensorflow-datasets; loading a
data set that needs one of them does.
"""

from jaxrobust.data.augment import pad_crop_flip as pad_crop_flip
from jaxrobust.data.dataset import Dataset as Dataset
from jaxrobust.data.datasets import NAMES as NAMES
from jaxrobust.data.datasets import load as load
from jaxrobust.data.splits import stratified_split as stratified_split

__all__ = ["NAMES", "Dataset", "load", "pad_crop_flip", "stratified_split"]
