"""Evaluate a classifier under an attack, or under several, cheap ones first."""

import os
from collections.abc import Iterable, Sequence
from typing import Any, overload

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from jaxrobust._core import checks, model_checks
from jaxrobust.attacks._model import any_tracer
from jaxrobust.evaluation import _given, _single, union
from jaxrobust.evaluation.report import Report
from jaxrobust.evaluation.union import UnionReport
from jaxrobust.types import Array, Attack, LogitsFn, Threat


@overload
def evaluate(  # pyrefly: ignore[inconsistent-overload]  of options named below
    logits_fn: LogitsFn,
    x: Array | Iterable[tuple[Array, Array]],
    y: Array | None = None,
    *,
    attack: Attack,
    threat: Threat,
    **options: Any,
) -> Report: ...


@overload
def evaluate(  # pyrefly: ignore[inconsistent-overload]  of options named below
    logits_fn: LogitsFn,
    x: Array | Iterable[tuple[Array, Array]],
    y: Array | None = None,
    *,
    attack: Attack | Sequence[Attack],
    threat: Sequence[Threat],
    **options: Any,
) -> UnionReport: ...


def evaluate(
    logits_fn: LogitsFn,
    x: Array | Iterable[tuple[Array, Array]],
    y: Array | None = None,
    *,
    attack: Attack | Sequence[Attack],
    threat: Threat | Sequence[Threat],
    key: Array | None = None,
    target: Any = None,
    start: Array | None = None,
    among: ArrayLike | None = None,
    groups: Array | None = None,
    include_misclassified: bool = False,
    stop_early: bool = True,
    individually: bool = False,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    state_file: str | os.PathLike | None = None,
    save_every: float = 60.0,
    max_seconds: float | None = None,
    progress: bool = True,
) -> Report | UnionReport:
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
      attack: Any attack; of several threats, one for all or one for each.
      threat: What it may do. A list of threats is evaluated one after the other, with the
        same key, and what withstands all of them is the union.
      key: One typed PRNG key; needed by attacks that draw random numbers.
      target: What attacks take that do not take labels: `[N]` classes to reach for a
        targeted loss, clean logits for `kl`. Of several attacks, each gets its own.
      start: Where attacks that take steps begin `[N, ...]`, such as the points of an
        earlier report, instead of at `x` or at random; drawn into the threat. Of several
        restarts, the first. Plain functions and FGSM cannot take it.
      among: Which examples to attack `[N]`, booleans; the others are reported at
        their clean points, as if the attack had failed. By default all.
      groups: Number of the group of each example `[N]`, for accuracies per group.
      include_misclassified: Attack those too that are misclassified on the clean input.
        They are broken anyway; but only so does `report.reached` count every target
        that can be reached.
      stop_early: False runs every attack to its end on every example, so that losses
        and distances under attack are those of the whole attack.
      individually: Run each attack of several on all examples, not on those that
        survive the earlier ones, to report what each breaks alone; with
        `stop_early=False` each to its end. What none breaks is reported at the point of the
        first attack.
      batch_size: Examples at a time, on all devices together; by default 128 on CPUs, 512 a
        device elsewhere, or the power of two that fits into its memory.
      mesh: Devices over which batches are spread; the model's arrays are copied to all
        of them unless they are on the mesh already.
      state_file: Where to save the state; a run that was killed goes on from there, if
        model, attack and data are the same: their programs and arrays are compared. So
        it is refused for a model that calls the host (`jax.pure_callback`). On several
        processes, a path on a file system that all of them see. Of several threats each
        has its own, `state-1.npz`, `state-2.npz`, ... for `state.npz`.
      save_every: Seconds between two savings.
      max_seconds: Stop after so many, compilation included, and after one round at least,
        with what is known: a `evaluation.PartialReport`. Examples whose attacks have not
        ended count as robust there, so that its accuracy is an upper bound, and it says
        so. The same call goes on from the `state_file`, to the very bits of a run that was
        not stopped. Of several threats: for all together.
      progress: Whether to show a bar, on a terminal.

    Returns:
      A `Report`; print it, or `report.save(directory)`. Of a list of threats an
      `evaluation.UnionReport`, with a report for each.

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
    x, y = _given.collect(x, y)
    options = _single.Options(
        key=key,
        target=None if target is None else jax.tree.map(np.asarray, target),
        start=start,
        among=among,
        groups=groups,
        include_misclassified=include_misclassified,
        stop_early=stop_early,
        individually=individually,
        batch_size=batch_size,
        mesh=mesh,
        state_file=state_file,
        save_every=save_every,
        progress=progress,
        deadline=_given.deadline(max_seconds),
    )
    if union.is_several(threat):
        return union.evaluate(logits_fn, x, y, attack, threat, options)
    one: tuple[Any, Any] = (attack, threat)
    return _single.run(_single.prepare(logits_fn, x, y, *one, options))
