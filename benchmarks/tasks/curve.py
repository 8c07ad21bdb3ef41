"""Robust accuracy at eight radii: one curve against eight evaluations.

What breaks at one radius is broken at every larger one, so that the curve attacks it no
more; and all radii share one compiled program.
"""

from typing import Any

from benchmarks import peers
from benchmarks.task import (
    OURS,
    Outcome,
    Problem,
    Side,
    Task,
    agrees,
    at_least,
    gradients_at_most,
)
from benchmarks.tasks import robust_accuracy

_SETTINGS = {
    "eps": [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4],
    "num_steps": 40,
    "rel_step_size": 0.1,
}
_QUICK = {"eps": [0.1, 0.3], "num_steps": 3}
_MEAN = "mean robust accuracy, %"
_TORCH_BATCH = 100


def _arguments(problem: Problem) -> tuple[Any, Any, Any, Any]:
    import jax.numpy as jnp

    import jaxrobust as jr
    from benchmarks import weights

    settings = problem.settings
    attack = jr.PGD(
        num_steps=settings["num_steps"], rel_step_size=settings["rel_step_size"]
    )
    x, y = (jnp.asarray(problem.arrays[name]) for name in ("x", "y"))
    return jr.models.logits_fn(weights.unpack(problem)), x, y, attack


def _curve(problem: Problem) -> Side:
    import jax

    import jaxrobust as jr

    logits_fn, x, y, attack = _arguments(problem)

    def run() -> Any:
        return jr.evaluation.robustness_curve(
            logits_fn,
            x,
            y,
            eps=problem.settings["eps"],
            attack=attack,
            threat=jr.Linf(0.0),
            key=jax.random.key(0),
        )

    def describe(curve: Any) -> Outcome:
        costs = [cost for cost in curve.cost if cost is not None]
        return Outcome(
            sum(cost["gradients"] for cost in costs),
            sum(cost["forwards"] for cost in costs),
            {_MEAN: 100 * float(curve.robust_accuracy.mean())},
        )

    return Side(run, describe)


def _separately(problem: Problem) -> Side:
    import jax

    import jaxrobust as jr

    logits_fn, x, y, attack = _arguments(problem)

    def run() -> list[Any]:
        key = jax.random.key(0)
        return [
            jr.evaluate(logits_fn, x, y, attack=attack, threat=jr.Linf(eps), key=key)
            for eps in problem.settings["eps"]
        ]

    def describe(reports: list[Any]) -> Outcome:
        costs = [report.cost for report in reports]
        return Outcome(
            sum(cost["gradients"] for cost in costs),
            sum(cost["forwards"] for cost in costs),
            {_MEAN: 100 * sum(r.robust_accuracy for r in reports) / len(reports)},
        )

    return Side(run, describe)


def _torchattacks(problem: Problem) -> Side:
    import torchattacks

    settings = problem.settings
    sides = [
        robust_accuracy.torch_side(
            problem,
            lambda model, eps=eps: [
                torchattacks.PGD(
                    model,
                    eps=eps,
                    alpha=settings["rel_step_size"] * eps,
                    steps=settings["num_steps"],
                ),
                torchattacks.VANILA(model),  # a MultiAttack needs two
            ],
            _TORCH_BATCH,
        )
        for eps in settings["eps"]
    ]

    def describe(results: list[Any]) -> Outcome:
        each = [
            side.describe(result) for side, result in zip(sides, results, strict=True)
        ]
        accuracies = [outcome.figures[robust_accuracy.ACCURACY] for outcome in each]
        return Outcome(
            sum(outcome.gradients or 0 for outcome in each),
            sum(outcome.forwards or 0 for outcome in each),
            {_MEAN: sum(accuracies) / len(accuracies)},
        )

    return Side(lambda: [side.run() for side in sides], describe)


TASKS = [
    Task(
        "curve",
        "robustness curve, eight radii, PGD-trained MNIST model, PGD-40, 1,000 images",
        robust_accuracy.prepare_mnist("PGD", _SETTINGS, _QUICK),
        {OURS: _curve, peers.SEPARATELY: _separately, "torchattacks": _torchattacks},
        (
            at_least(1.0),
            gradients_at_most(0.99, peers.SEPARATELY),
            # Separate runs draw other starts: a few images of a thousand.
            agrees(_MEAN, 0.5),
        ),
        max_rounds=1,
    )
]
