"""The value that every loader returns: four arrays and what they mean."""

import dataclasses
from typing import Any

import numpy as np

from jaxrobust.data.splits import stratified_split


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Dataset:
    """Images and labels of one data set, in host memory.

    Images stay uint8 (a quarter of the memory, and of the transfer, of float32);
    `images` turns the batch at hand into float32 in [0, 1].

    Attributes:
      name: Its name in `jaxrobust.data.NAMES`.
      x_train: Training images `[N, H, W, C]`, uint8 in [0, scale].
      y_train: Training labels `[N]`, int32 in [0, num_classes).
      x_test: Test images `[M, H, W, C]`, uint8 in [0, scale].
      y_test: Test labels `[M]`, int32 in [0, num_classes).
      class_names: One name for each class.
      scale: Pixel value that stands for 1.0: 255, or 16 for digits.

    Example:
      >>> import numpy as np
      >>> x, y = np.full((4, 2, 2, 1), 255, np.uint8), np.zeros(4, np.int32)
      >>> data = Dataset("white", x, y, x[:2], y[:2], ("white",))
      >>> data
      Dataset('white', 4 train, 2 test, input_shape=(2, 2, 1), num_classes=1)
      >>> float(data.images(data.x_test).max())
      1.0
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]
    scale: float = 255.0

    def __post_init__(self) -> None:
        """Check that the arrays fit each other and the class names."""
        for part in ("train", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if x.dtype != np.uint8 or x.ndim != 4:
                raise ValueError(
                    f"{self.name}: x_{part} is {x.dtype} {x.shape}; "
                    "need uint8 [N, H, W, C]."
                )
            if y.dtype != np.int32 or y.shape != x.shape[:1]:
                raise ValueError(
                    f"{self.name}: y_{part} is {y.dtype} {y.shape}; "
                    f"need int32 {x.shape[:1]}, one label for each image."
                )
            if y.size and not 0 <= y.min() <= y.max() < self.num_classes:
                raise ValueError(
                    f"{self.name}: y_{part} holds labels from {y.min()} to {y.max()}; "
                    f"need [0, {self.num_classes}), one class name for each class."
                )

    def __repr__(self) -> str:
        """Sizes instead of pixels."""
        return (
            f"Dataset({self.name!r}, "
            f"{len(self.x_train)} train, {len(self.x_test)} test, "
            f"input_shape={self.input_shape}, num_classes={self.num_classes})"
        )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape `(H, W, C)` of one image."""
        return self.x_train.shape[1:]

    def images(self, x: Any) -> Any:
        """Turn pixels into the float images that models and threats expect.

        A NumPy array gives a NumPy array; a JAX array gives a JAX array, under `jit`
        too, so that a batch can travel to the device as uint8. XLA may turn the
        division into a product: the compiled result can differ by one ulp, and stays in
        [0, 1].

        Args:
          x: `[..., H, W, C]`, values in [0, scale].

        Returns:
          `[..., H, W, C]`, float32 in [0, 1].
        """
        return x.astype(np.float32) / np.float32(self.scale)

    def subset(
        self, num_train: int | None = None, num_test: int | None = None
    ) -> "Dataset":
        """Keep the first examples of each part; None keeps them all.

        The arrays are views. "The first 1,000 test images" are those of the literature
        only where the order is the original one: see `load`.

        Args:
          num_train: Number of training examples to keep.
          num_test: Number of test examples to keep.

        Returns:
          A smaller `Dataset`.

        Raises:
          ValueError: If a number is negative or there are fewer examples.
        """
        sizes = {"num_train": len(self.x_train), "num_test": len(self.x_test)}
        for argument, num in (("num_train", num_train), ("num_test", num_test)):
            if num is not None and not 0 <= num <= sizes[argument]:
                raise ValueError(
                    f"{argument}={num}, but {self.name} has {sizes[argument]}; "
                    f"give a number from 0 to {sizes[argument]}, or None for all."
                )
        return dataclasses.replace(
            self,
            x_train=self.x_train[:num_train],
            y_train=self.y_train[:num_train],
            x_test=self.x_test[:num_test],
            y_test=self.y_test[:num_test],
        )

    def split(
        self, num_validation: int, *, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Split the training part in two: see `stratified_split`.

        Args:
          num_validation: Number of training examples to set aside.
          seed: Same seed, same split.

        Returns:
          Indices into `x_train` for training `[N - num_validation]` and for validation
          `[num_validation]`.

        Raises:
          ValueError: If there are fewer training examples.
        """
        return stratified_split(self.y_train, num_validation, seed=seed)
