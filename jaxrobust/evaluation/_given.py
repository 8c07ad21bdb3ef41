"""What `evaluate` was given: put into arrays, and checked before anything is compiled."""

import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxrobust import losses
from jaxrobust._core import cpu, label_checks, model_checks
from jaxrobust.evaluation.queue import _forward
from jaxrobust.types import LogitsFn


def collect(x: Any, y: Any) -> tuple[Any, Any]:
    """Return arrays; an iterable of batches is put together on the host."""
    if y is not None:
        return x, y
    if hasattr(x, "shape") or not isinstance(x, Iterable):
        raise TypeError(
            "evaluate needs labels: pass evaluate(logits_fn, x, y, ...), or instead of x "
            "an iterable of batches (x, y)."
        )
    if isinstance(x, tuple) and all(hasattr(array, "shape") for array in x):
        raise TypeError("pass arrays one by one, evaluate(logits_fn, x, y, ...).")
    batches = [(np.asarray(x), np.asarray(y)) for x, y in x]
    if not batches:
        raise ValueError("the iterable holds no batches: there is nothing to evaluate.")
    xs, ys = zip(*batches, strict=True)
    return np.concatenate(xs), np.concatenate(ys)


def check_examples(x: Any, y: Any, **one_each: Any) -> None:
    """Raise where `x` or `y` is no batch, or there is not one value for each example."""
    if not np.ndim(x) or not len(x):
        raise ValueError("x holds no examples: there is nothing to evaluate.")
    if np.ndim(y) != 1:
        advice = "y.argmax(-1) for one-hot labels, x[None], y[None] for one example"
        if np.shape(y)[1:] == (1,):
            advice = "y[:, 0]"
        raise ValueError(
            f"y has shape {np.shape(y)}; accuracy needs labels [N]: pass {advice}. What "
            "the attack's loss takes instead of labels is passed as target=. A model that "
            "does not choose one class (regression, several labels, pixels) is attacked by "
            "the attack itself, attack(logits_fn, x, y, threat=threat, key=key)."
        )
    for name, values in one_each.items():
        if values is not None and np.shape(values) != np.shape(y):
            raise ValueError(
                f"{name} has shape {np.shape(values)}; one value for each of the "
                f"{len(y)} examples is needed, shape ({len(y)},)."
            )


def deadline(max_seconds: float | None) -> float | None:
    """Return when the time is over, by `time.monotonic`; None: never."""
    if max_seconds is None:
        return None
    if not max_seconds > 0:
        raise ValueError(
            f"max_seconds={max_seconds}: a positive number of seconds is needed, or None "
            "to run to the end."
        )
    return time.monotonic() + max_seconds


def check_start(stages: list, start: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return where the attacks begin, or raise where one cannot."""
    without = [stage.name for stage in stages if not stage.is_queued]
    if without:
        raise ValueError(
            f"start= is for attacks that take steps from a point, not for {without[0]}: "
            "leave it out, or use jr.PGD, jr.APGD, jr.FAB, jr.Square (and no "
            "stop_early=False)."
        )
    if start.shape != x.shape or not np.isfinite(start).all():
        raise ValueError(
            f"start has shape {start.shape}, x {x.shape}: one finite point for each "
            "example is needed, such as report.x_adv."
        )
    return start


def check_target(stages: list, y: np.ndarray, target: Any, among: Any) -> None:
    """Check what attacks take that do not take labels."""
    for stage in stages:
        if stage.y is not target:
            continue
        kind = stage.attack.takes
        label_checks.check(target, len(y), kind)
        classes = {losses.TARGETS: target, losses.PAIR: target[1]}.get(kind)
        if classes is None:
            continue
        is_own = (classes == y) & (True if among is None else np.asarray(among, bool))
        if is_own.any():
            raise ValueError(
                f"target is the label itself for {is_own.sum()} of {len(y)} examples, "
                "which no attack can lead there: leave them out, or pass "
                "among=(target != y)."
            )


def default_batch_size(num_examples: int, num_devices: int) -> int:
    """Return how many examples are worked on at a time."""
    enough = -(-num_examples // num_devices) * num_devices
    return min(cpu.batch_size(num_devices), enough)


def check_batch_size(batch_size: int, num_devices: int) -> int:
    """Return the batch size, or raise where the devices cannot share it."""
    if batch_size < 1 or batch_size % num_devices:
        raise ValueError(
            f"batch_size={batch_size}: a multiple of the number of devices "
            f"({num_devices}) is needed, at least {num_devices}."
        )
    return batch_size


def check_model(logits_fn: LogitsFn, x: np.ndarray, y: np.ndarray) -> None:
    """Raise where the model does not return logits of classes, each of its own example."""
    with model_checks.explain_model_errors(x):
        logits = _forward.logits(logits_fn, x)
    # The labels of all, the shape of a batch.
    labels = np.resize(y, len(x))
    model_checks.check_logits(logits, labels, losses.LABELS)
    label_checks.check_range(y, logits.shape[1])
    with model_checks.explain_model_errors():
        model_checks.check_not_probabilities(logits)
        copies = np.broadcast_to(x[:1], x.shape)
        # All of them: dropout with a mask for each position spares the first.
        model_checks.check_training_mode(_forward.logits(logits_fn, copies), logits[:1])
