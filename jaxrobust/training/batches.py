"""Data that do not fit on the device: batches from an iterable, one ahead of the steps."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxrobust._core import label_checks
from jaxrobust._core.placing import Placing

_END = object()
_NEEDED = (
    "Pass something that begins anew in each epoch: a list, a loader, or a function "
    "epoch -> batches, `lambda epoch: make_batches(seed=epoch)`."
)


class Batches:
    """Pairs `(x, y)` of an iterable that begins anew, or of a function epoch -> iterable.

    Attributes:
      first: the first batch, on the host.
      steps_per_epoch: by `len`, or what the first epoch had; None while it is not known.
      num_classes: what labels are checked against, once it is set.
      has_failed: whether it is the batches that have raised.
    """

    def __init__(self, source: Any, placing: Placing):
        """Draw the first batch."""
        if not (callable(source) or hasattr(source, "__iter__")):
            raise TypeError(
                f"x is of type {type(source).__name__}; arrays x and y are needed, or, "
                "without y, an iterable of batches (x, y)."
            )
        if hasattr(source, "__array__"):
            raise TypeError("y is missing: pass the labels [N] of the inputs x.")
        self._source, self._placing = source, placing
        # A class of somebody's own may return itself and begin anew.
        is_plain = type(source).__module__ in ("builtins", "itertools")
        self._is_once = is_plain and hasattr(source, "__next__")
        self.steps_per_epoch: int | None = None
        self.num_classes: int | None = None
        self.has_failed = False
        self.first: tuple[Any, Any] = ()  # pyrefly: ignore[bad-assignment]
        self._iterator: Iterator[Any] = iter(())
        self._position: tuple[int, int] | None = None  # epoch and step of what is ready
        self._ready: Any = None  # a batch on the device, or the error instead of one
        self.at(0, 0)

    @property
    def kind(self) -> str:
        """What can be said of the data: what they are is not known beforehand."""
        return f"batches of {' and '.join(map(_described, self.first))}"

    def at(self, epoch: int, step: int) -> tuple[jax.Array, jax.Array, None]:
        """Return x, y of a step, and None for the order of the examples."""
        try:
            if self._position != (epoch, step):
                self._seek(epoch, step)
            if isinstance(self._ready, Exception):
                raise self._ready
        except Exception:
            self.has_failed = True
            raise
        return (*self._ready, None)

    def ahead(self) -> None:
        """Draw the next batch, while the device works on this one.

        What is wrong with it is said when it is asked for.
        """
        assert self._position is not None
        epoch, step = self._position[0], self._position[1] + 1
        self._position = (epoch, step)
        if step != self.steps_per_epoch:
            try:
                batch = self._draw(epoch, step)
                if batch is not _END:
                    self._ready = self._place(batch, epoch, step)
                    return
                if self.steps_per_epoch is not None:
                    self._ready = self._ended(epoch, step)
                    return
                self.steps_per_epoch = step
            except Exception as error:
                self._ready = error
                return
        # The next epoch is opened when it begins.
        self._position, self._ready, self._iterator = None, None, iter(())

    def check_epochs(self, num_epochs: int) -> None:
        """Raise where there will be no batches for the second epoch."""
        if self._is_once and num_epochs > 1:
            kind = type(self._source).__name__
            raise TypeError(
                f"x is a {kind}, used up after one pass, and num_epochs is {num_epochs}. "
                f"{_NEEDED}"
            )

    def _seek(self, epoch: int, step: int) -> None:
        """Make a batch ready that is not the next: of a new epoch, a resumed run."""
        start = 0
        if self._position and self._position[0] == epoch and self._position[1] < step:
            start = self._position[1] + 1  # further on in this pass
        else:
            self._iterator = self._open(epoch)
        batch = None
        for i in range(start, step + 1):
            batch = self._draw(epoch, i)
            if batch is _END:
                raise self._ended(epoch, i)
        self._ready = self._place(batch, epoch, step)
        self._position = (epoch, step)

    def _open(self, epoch: int) -> Iterator[Any]:
        if self._is_once and self.first:
            raise TypeError(
                f"the batches are used up, and epoch {epoch + 1} needs them again: x is a "
                f"{type(self._source).__name__}, an iterator. {_NEEDED}"
            )
        try:
            batches = self._source(epoch) if callable(self._source) else self._source
            if self.steps_per_epoch is None and hasattr(batches, "__len__"):
                self.steps_per_epoch = len(batches)
            return iter(batches)
        except Exception as error:
            error.add_note(f"jaxrobust: raised by the batches of epoch {epoch + 1}.")
            raise

    def _draw(self, epoch: int, step: int) -> Any:
        try:
            return next(self._iterator, _END)
        except Exception as error:
            error.add_note(f"jaxrobust: raised by the batches at {_at(epoch, step)}.")
            raise

    def _place(self, batch: Any, epoch: int, step: int) -> Any:
        """Return a batch on the device, after checking it on the host."""
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise TypeError(
                f"{_at(epoch, step)} is a {type(batch).__name__}; a pair (x, y) of inputs "
                "[B, ...] and labels [B] is needed: map the batches to that."
            )
        x, y = map(_on_host, batch)
        if not self.first:
            self.first = x, y
        for name, given, first in zip("xy", (x, y), self.first, strict=True):
            if (given.shape, given.dtype) == (first.shape, first.dtype):
                continue
            raise ValueError(
                f"{name} at {_at(epoch, step)} is {_described(given)}, and was "
                f"{_described(first)} in the first batch: all batches have one shape and "
                "type, the last of an epoch too (drop_last=True, drop_remainder=True)."
            )
        if self.num_classes is not None:
            try:
                label_checks.check_range(y, self.num_classes)
            except ValueError as error:
                error.add_note(f"jaxrobust: found at {_at(epoch, step)}.")
                raise
        return self._placing.spread((x, y))

    def _ended(self, epoch: int, step: int) -> ValueError:
        if not step:
            return ValueError(f"there are no batches in epoch {epoch + 1}. {_NEEDED}")
        return ValueError(
            f"the batches of epoch {epoch + 1} have ended after {step}, and an epoch has "
            f"{self.steps_per_epoch} steps (by len, or as many as the first one had): "
            "each epoch needs as many."
        )


def _on_host(array: Any) -> Any:
    """Return an array on the host; one of JAX stays where it is."""
    return array if isinstance(array, jax.Array) else np.asarray(array)


def _at(epoch: int, step: int) -> str:
    return f"batch {step + 1} of epoch {epoch + 1}"


def _described(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"
