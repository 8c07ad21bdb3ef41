"""AutoAttack `standard`: the same four attacks, steps and targets as in torchattacks.

The peer is `torchattacks.AutoAttack` with the reference's 100 steps instead of its own
default of 10, in batches of 250 as in the reference. Like the reference, it gives the next
attack only the images that are still classified correctly, but runs every attack
to its end on the whole batch.
"""

from benchmarks.task import (
    OURS,
    Problem,
    Side,
    Target,
    Task,
    agrees,
    at_least,
    gradients_at_most,
)
from benchmarks.tasks import robust_accuracy

_SETTINGS = {"eps": 0.3, "num_steps": 100, "num_targets": 9, "num_queries": 5000}
_QUICK = {"num_steps": 3, "num_targets": 2, "num_queries": 5}
_TORCH_BATCH = 250


def _jaxrobust(problem: Problem) -> Side:
    import jax
    import jax.numpy as jnp

    import jaxrobust as jr
    from benchmarks import weights

    settings = problem.settings
    steps, targets = settings["num_steps"], settings["num_targets"]
    attack = jr.WorstOf(
        (
            jr.APGD(num_steps=steps),
            jr.Targets(jr.APGD(num_steps=steps, loss=jr.losses.dlr_targeted), targets),
            jr.Targets(jr.FAB(num_steps=steps, targeted=True), targets),
            jr.Square(num_queries=settings["num_queries"]),
        )
    )
    logits_fn = jr.models.logits_fn(weights.unpack(problem))
    x, y = (jnp.asarray(problem.arrays[name]) for name in ("x", "y"))
    options = dict(attack=attack, threat=jr.Linf(settings["eps"]))
    return Side(
        lambda: jr.evaluate(logits_fn, x, y, key=jax.random.key(0), **options),
        robust_accuracy.describe_report,
    )


def _torchattacks(problem: Problem) -> Side:
    import torchattacks

    settings = problem.settings
    eps, steps = settings["eps"], settings["num_steps"]
    targets = {"n_classes": settings["num_targets"] + 1}

    def attacks(model):
        return [
            torchattacks.APGD(model, eps=eps, steps=steps, loss="ce"),
            torchattacks.APGDT(model, eps=eps, steps=steps, **targets),
            torchattacks.FAB(
                model, eps=eps, steps=steps, multi_targeted=True, **targets
            ),
            torchattacks.Square(model, eps=eps, n_queries=settings["num_queries"]),
        ]

    return robust_accuracy.torch_side(problem, attacks, _TORCH_BATCH)


def _task(name: str, title: str, training: str, share: float) -> Task:
    targets: tuple[Target, ...] = (
        at_least(1.0, "torchattacks"),
        gradients_at_most(share, "torchattacks"),
        agrees(robust_accuracy.ACCURACY, 0.3),
    )
    return Task(
        name,
        f"AutoAttack, {title}, 1,000 images",
        robust_accuracy.prepare_mnist(training, _SETTINGS, _QUICK),
        {OURS: _jaxrobust, "torchattacks": _torchattacks},
        targets,
        max_rounds=0,
    )


TASKS = [
    _task("autoattack-standard", "standard MNIST model", "standard", 0.1),
    _task("autoattack-robust", "PGD-trained MNIST model", "PGD", 1.0),
]
