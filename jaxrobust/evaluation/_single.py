"""The evaluation under one threat, from the checks of the arguments to the report."""

import dataclasses
import os
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from jaxrobust import losses
from jaxrobust._core import batching, checks, model_checks, processes, threat_rows
from jaxrobust._core.placing import Placing
from jaxrobust.attacks._base import as_attack
from jaxrobust.attacks._call import check_key
from jaxrobust.attacks._model import as_model
from jaxrobust.evaluation import _audit, _given
from jaxrobust.evaluation._papers import papers
from jaxrobust.evaluation.partial import PartialReport
from jaxrobust.evaluation.queue import _forward, _memory, _random, _stages
from jaxrobust.evaluation.queue._budget import Budget, Stopped
from jaxrobust.evaluation.queue._fingerprint import fingerprint
from jaxrobust.evaluation.queue._problem import NOTHING, Found, Problem, Stage
from jaxrobust.evaluation.queue._saved import StateFile
from jaxrobust.evaluation.report import Report
from jaxrobust.types import Array, Attack, LogitsFn, Threat


@dataclasses.dataclass(frozen=True)
class Options:
    """The arguments of `evaluate` that are the same under every threat; see there.

    Attributes:
      deadline: When `max_seconds` are over, by `time.monotonic`.
      keeps_state: Whether the state file stays when the evaluation has ended, so that the
        same call finds all done.
    """

    key: Array | None
    target: Any
    start: Array | None
    among: ArrayLike | None
    groups: Array | None
    include_misclassified: bool
    stop_early: bool
    individually: bool
    batch_size: int | None
    mesh: Mesh | None
    state_file: str | os.PathLike | None
    save_every: float
    progress: bool
    deadline: float | None = None
    keeps_state: bool = False


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An evaluation whose arguments have been checked; nothing is attacked yet.

    Attributes:
      attack: The attack.
      stages: The attacks that it is made of.
      problem: What is attacked.
      chosen: Which examples to attack `[N]`.
      size: Examples at a time.
      settings: What the report says of them all.
      options: The other arguments.
      is_random: Whether the model is known as random.
    """

    attack: Any
    stages: list[Stage]
    problem: Problem
    chosen: np.ndarray
    size: int
    settings: dict[str, Any]
    options: Options
    is_random: bool


def prepare(
    logits_fn: LogitsFn,
    x: Any,
    y: Any,
    attack: Attack,
    threat: Threat,
    options: Options,
) -> Prepared:
    """Check the arguments, classify the clean inputs, trace the start of every attack."""
    attack = as_attack(attack)
    key = check_key(attack, options.key)
    threat = threat_rows.as_threat(threat)
    checks.check_distance(attack, threat)
    _given.check_examples(x, y, groups=options.groups, among=options.among)
    x, y = checks.check_inputs(x, y, threat, losses.LABELS, xp=np)
    processes.check_path("state_file", options.state_file, options.mesh)
    checks.check_key_shape(key, x.shape[0])
    placing = Placing(options.mesh)
    size = options.batch_size
    if size is None:
        size = _given.default_batch_size(x.shape[0], placing.num_devices)
    size = _given.check_batch_size(size, placing.num_devices)
    is_random = _random.is_random(logits_fn)
    stages = _stages_of(attack, key, y, threat, options, is_random=is_random)
    problem = _problem(logits_fn, threat, x, y, stages, placing, size, options)
    if options.batch_size is None:
        size = _memory.fitting(stages, problem, size)
    settings = _audit.settings(attack, threat, key, size, placing.num_devices)
    if is_random:
        settings["random_model"] = _random.settings(problem.logits_fn)
    chosen = _chosen(stages, problem, options, is_random=is_random)
    return Prepared(attack, stages, problem, chosen, size, settings, options, is_random)


def run(ready: Prepared) -> Report:
    """Attack every example under one threat; the report of `evaluate`."""
    options = ready.options
    with StateFile(options.state_file, _digest(ready), options.save_every) as file:
        file.is_kept = options.keeps_state
        found, shares, stopped = _attack(ready, file)
    report = _report(ready, found, shares, stopped)
    if stopped is None:
        file.end()
    return report


def _digest(ready: Prepared) -> str:
    """Return what tells the state file of this evaluation from those of others."""
    options, problem = ready.options, ready.problem
    if options.state_file is None:
        return ""
    key = check_key(ready.attack, options.key)
    key_data = None if key is None else jax.random.key_data(key)
    extra = (ready.chosen, key_data, options.individually, problem.start)
    return fingerprint(problem, ready.stages, ready.settings, extra, ready.size)


def _stages_of(
    attack: Any, key: Any, y: Any, threat: Threat, options: Options, *, is_random: bool
) -> list[Stage]:
    """Return the attacks that `attack` is made of, each with what it takes."""
    target = options.target
    is_queued = options.stop_early or is_random
    stages = _stages.of(
        attack,
        None if key is None else batching.per_example_keys(key, len(y)),
        y,
        target,
        threat,
        is_queued=is_queued,
        is_split=is_queued or options.individually,
    )
    _given.check_target(stages, y, target, options.among)
    return stages


def _problem(
    logits_fn: LogitsFn,
    threat: Threat,
    x: np.ndarray,
    y: np.ndarray,
    stages: list[Stage],
    placing: Placing,
    size: int,
    options: Options,
) -> Problem:
    """Return what is attacked, the clean inputs classified."""
    rows, _ = next(_forward.batches(np.arange(x.shape[0]), size))
    model = as_model(logits_fn, x[rows])
    _given.check_model(model.fn, x[rows], y)
    _random.check(model.fn, x[rows], individually=options.individually)
    problem = _forward.prepare(model.fn, threat, x, y, placing, size)
    if options.start is not None:
        start = np.asarray(options.start, problem.x.dtype)
        points = _given.check_start(stages, start, x)
        problem = dataclasses.replace(problem, start=points)
    model_checks.check_finite_logits(problem.logits)
    _stages.check(stages, problem, size)
    return problem


def _chosen(
    stages: list[Stage], problem: Problem, options: Options, *, is_random: bool
) -> np.ndarray:
    """Return which examples to attack, `[N]`."""
    among = options.among
    if among is None:
        among = np.ones(len(problem.y), bool)
    chosen = np.array(among, bool)
    is_left_out = len(stages) > 1 or stages[0].is_queued
    if is_left_out and not options.include_misclassified and not is_random:
        chosen &= problem.is_correct
    return chosen


def _attack(
    ready: Prepared, file: StateFile
) -> tuple[Found, np.ndarray, Stopped | None]:
    """Run all stages; the result is that of `_stages.run` or `_random.run`."""
    from jaxrobust.evaluation._progress import ProgressBar  # rich is loaded when needed

    options, budget = ready.options, Budget(ready.options.deadline)
    arguments = (ready.stages, ready.problem, ready.chosen, ready.size, file)
    with (
        model_checks.explain_model_errors(),
        ProgressBar(is_shown=options.progress) as bar,
    ):
        if ready.is_random:
            return _random.run(*arguments, bar, budget)
        return _stages.run(*arguments, bar, budget, individually=options.individually)


def _report(
    ready: Prepared, found: Found, shares: np.ndarray, stopped: Stopped | None
) -> Report:
    """Classify the points that were found, and audit them."""
    problem, stages, options = ready.problem, ready.stages, ready.options
    measure = _random.measure if ready.is_random else _forward.measure
    figures = measure(problem, found.x_adv, ready.size)
    x, y, threat = problem.x.astype(problem.dtype), problem.y, problem.threat
    x_adv = found.x_adv.astype(problem.dtype)
    audit = _audit.audit(x_adv, x, figures["distance"], threat)
    audit["logits_not_finite"] = int((~figures.pop("is_number")).sum())
    audit["not_confirmed"] = found.counts["not_confirmed"]
    _audit.warn_of_violations(audit, len(y))
    groups, target = options.groups, options.target
    is_classes = isinstance(target, np.ndarray) and target.shape == y.shape
    names = tuple(stage.name for stage in stages)
    kind: Any = Report
    if stopped is not None:
        kind, names = (
            partial(PartialReport, stopped=stopped),
            names[: stopped.num_begun],
        )
    claimed = problem.is_correct & (found.worth == NOTHING)
    report = kind(
        y=y,
        groups=None if groups is None else np.asarray(groups),
        target=target if is_classes else None,
        num_classes=problem.logits.shape[1],
        attacks=names,
        papers=papers(ready.attack, threat),
        broken_by=found.broken_by,
        broken_alone=shares if options.individually else None,
        share_after=shares if ready.is_random and len(stages) > 1 else None,
        robust_claimed=claimed if ready.is_random else None,
        cost=_stages.cost(stages, found, len(y)),
        audit=audit,
        settings=ready.settings,
        x_adv=x_adv,
        **figures,
    )
    if not report.is_finished:
        checks.warn_user(report.why_unfinished(resumes=options.state_file is not None))
    return report
