"""Evaluate a classifier under an attack, or under several, cheap ones first."""

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from jaxrobust import losses
from jaxrobust._core import (
    batching,
    checks,
    cpu,
    label_checks,
    model_checks,
    processes,
    threat_rows,
)
from jaxrobust._core.placing import Placing
from jaxrobust.attacks._base import as_attack
from jaxrobust.attacks._call import check_key
from jaxrobust.attacks._model import any_tracer, as_model
from jaxrobust.evaluation import _audit
from jaxrobust.evaluation._papers import papers
from jaxrobust.evaluation.queue import _forward, _random, _stages
from jaxrobust.evaluation.queue._fingerprint import fingerprint
from jaxrobust.evaluation.queue._saved import StateFile
from jaxrobust.evaluation.report import Report
from jaxrobust.types import Array, Attack, LogitsFn, Threat


def evaluate(
    logits_fn: LogitsFn,
    x: Array | Iterable[tuple[Array, Array]],
    y: Array | None = None,
    *,
    attack: Attack,
    threat: Threat,
    key: Array | None = None,
    target: Any = None,
    start: Array | None = None,
    groups: Array | None = None,
    among: ArrayLike | None = None,
    include_misclassified: bool = False,
    batch_size: int | None = None,
    stop_early: bool = True,
    individually: bool = False,
    mesh: Mesh | None = None,
    state_file: str | os.PathLike | None = None,
    save_every: float = 60.0,
    progress: bool = True,
) -> Report:
    """Attack every example and report clean and robust accuracy.

    Carlini et al. 2019, arXiv:1902.06705: accuracy is recomputed on the returned points and
    every point is audited. Example i draws from `fold_in(key, i)`, so the batch size
    changes nothing but speed and memory.

    An attack that is a state machine (`PGD`, `APGD`, ..., also inside `Restarts`,
    `Targets`, `WorstOf` and `autoattack`) works only on examples that are classified
    correctly, leaves each as soon as it is broken, and puts the next one in its place.
    Other attacks (`FGSM`, plain functions) are run on every example.

    A random model, the value of `jr.eot` or `jr.randomized`, is known as one: every attack
    runs to its end on every example; of its points and the clean one, that is kept which
    is wrong in the most of 20 draws that the attack has not seen, and accuracy is the mean
    over 20 further ones.

    Args:
      logits_fn: Pure function from inputs `[B, ...]` to logits `[B, C]`.
      x: Clean inputs `[N, ...]`, or an iterable of batches `(x, y)`.
      y: True labels `[N]`; None where `x` is an iterable.
      attack: Any attack.
      threat: What it may do.
      key: One typed PRNG key; needed by attacks that draw random numbers.
      target: What attacks take that do not take labels: `[N]` classes to reach for a
        targeted loss, clean logits for `kl`. Of several attacks, each gets its own.
      start: Where attacks that take steps begin `[N, ...]`, such as the points of an
        earlier report, instead of at `x` or at random; drawn into the threat. Of several
        restarts, the first. Plain functions and FGSM cannot take it.
      groups: Number of the group of each example `[N]`, for accuracies per group.
      among: Which examples to attack `[N]`, booleans; the others are reported at
        their clean points, as if the attack had failed. By default all.
      include_misclassified: Attack those too that are misclassified on the clean input.
        They are broken anyway; but only so does `report.reached` count every target
        that can be reached.
      batch_size: Examples at a time, on all devices together; by default 128 on CPUs, 512 a
        device elsewhere.
      stop_early: False runs every attack to its end on every example, so that losses
        and distances under attack are those of the whole attack.
      individually: Run each attack of several on all examples, not on those that
        survive the earlier ones, to report what each breaks alone; with
        `stop_early=False` each to its end. What none breaks is reported at the point of the
        first attack.
      mesh: Devices over which batches are spread; the model's arrays are copied to all
        of them unless they are on the mesh already.
      state_file: Where to save the state; a run that was killed goes on from there, if
        model, attack and data are the same: their programs and arrays are compared. So
        it is refused for a model that calls the host (`jax.pure_callback`). On several
        processes, a path on a file system that all of them see.
      save_every: Seconds between two savings.
      progress: Whether to show a bar, on a terminal.

    Returns:
      A `Report`; print it, or `report.save(directory)`.

    Raises:
      ValueError, TypeError: On misuse, with advice.

    Example:
      >>> import jax.numpy as jnp, jaxrobust as jr
      >>> x, y = jnp.array([[0.2, 0.6], [0.45, 0.55]]), jnp.array([1, 1])
      >>> report = evaluate(lambda x: x, x, y, attack=jr.FGSM(), threat=jr.Linf(0.1))
      >>> print(report.clean_accuracy, report.robust_accuracy)
      1.0 0.5
    """
    model_checks.check_callable(logits_fn)
    if any_tracer([x, y]):
        raise checks.traced_error("evaluate")
    x, y = _collect(x, y)
    attack = as_attack(attack)
    key = check_key(attack, key)
    threat = threat_rows.as_threat(threat)
    checks.check_distance(attack, threat)
    _check_examples(x, y, groups=groups, among=among)
    x, y = checks.check_inputs(x, y, threat, losses.LABELS, xp=np)
    processes.check_path("state_file", state_file, mesh)
    checks.check_key_shape(key, x.shape[0])
    keys = None if key is None else batching.per_example_keys(key, x.shape[0])
    placing = Placing(mesh)
    if batch_size is None:
        batch_size = default_batch_size(x.shape[0], placing.num_devices)
    size = _check_batch_size(batch_size, placing.num_devices)
    target = None if target is None else jax.tree.map(np.asarray, target)
    is_random = _random.is_random(logits_fn)
    is_queued = stop_early or is_random
    stages = _stages.of(
        attack,
        keys,
        y,
        target,
        threat,
        is_queued=is_queued,
        is_split=is_queued or individually,
    )
    _check_target(stages, y, target, among)
    rows, _ = next(_forward.batches(np.arange(x.shape[0]), size))
    model = as_model(logits_fn, x[rows])
    _check_model(model.fn, x[rows], y)
    _random.check(model.fn, x[rows], individually=individually)
    problem = _forward.prepare(model.fn, threat, x, y, placing, size)
    if start is not None:
        points = _check_start(stages, np.asarray(start, problem.x.dtype), x)
        problem = dataclasses.replace(problem, start=points)
    model_checks.check_finite_logits(problem.logits)
    _stages.check(stages, problem, size)
    settings = _audit.settings(attack, threat, key, size, placing.num_devices)
    if is_random:
        settings["random_model"] = _random.settings(problem.logits_fn)
    key_data = None if key is None else jax.random.key_data(key)
    among = np.ones(len(y), bool) if among is None else np.asarray(among, bool)
    chosen = among.copy()
    is_left_out = len(stages) > 1 or stages[0].is_queued
    if is_left_out and not include_misclassified and not is_random:
        chosen &= problem.is_correct
    digest = ""
    if state_file is not None:
        extra = (chosen, key_data, individually, problem.start)
        digest = fingerprint(problem, stages, settings, extra, size)
    with StateFile(state_file, digest, save_every) as file:
        arguments = (stages, problem, chosen, size, file)
        with model_checks.explain_model_errors():
            if is_random:
                found, shares = _random.run(*arguments, progress=progress)
            else:
                found, shares = _stages.run(
                    *arguments, individually=individually, progress=progress
                )
    measure = _random.measure if is_random else _forward.measure
    figures = measure(problem, found.x_adv, size)
    x_adv = found.x_adv.astype(x.dtype)
    audit = _audit.audit(x_adv, x, figures["distance"], threat)
    audit["logits_not_finite"] = int((~figures.pop("is_number")).sum())
    audit["not_confirmed"] = found.counts["not_confirmed"]
    _audit.warn_of_violations(audit, len(y))
    is_classes = isinstance(target, np.ndarray) and target.shape == y.shape
    report = Report(
        y=y,
        groups=None if groups is None else np.asarray(groups),
        target=target if is_classes else None,
        num_classes=problem.logits.shape[1],
        attacks=tuple(stage.name for stage in stages),
        papers=papers(attack, threat),
        broken_by=found.broken_by,
        broken_alone=shares if individually else None,
        share_after=shares if is_random and len(stages) > 1 else None,
        cost=_stages.cost(stages, found, len(x)),
        audit=audit,
        settings=settings,
        x_adv=x_adv,
        **figures,
    )
    file.remove()
    return report


def _collect(x: Any, y: Any) -> tuple[Any, Any]:
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


def _check_examples(x: Any, y: Any, **one_each: Any) -> None:
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


def _check_start(stages: list, start: np.ndarray, x: np.ndarray) -> np.ndarray:
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


def _check_target(stages: list, y: np.ndarray, target: Any, among: Any) -> None:
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


def _check_batch_size(batch_size: int, num_devices: int) -> int:
    if batch_size < 1 or batch_size % num_devices:
        raise ValueError(
            f"batch_size={batch_size}: a multiple of the number of devices "
            f"({num_devices}) is needed, at least {num_devices}."
        )
    return batch_size


def _check_model(logits_fn: LogitsFn, x: np.ndarray, y: np.ndarray) -> None:
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
