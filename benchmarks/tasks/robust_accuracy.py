"""The robust accuracy of an MNIST model under PGD with restarts, until all is known.

torchattacks has no restarts. Its users chain ten `PGD` in a `MultiAttack`, which gives
the next one only the images that are still classified correctly; so does this file.
foolbox is left out: its restarts (`attack.repeat`) attack every image every time.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.task import (
    OURS,
    Options,
    Outcome,
    Problem,
    Side,
    Target,
    Task,
    agrees,
    at_least,
)

ACCURACY = "robust accuracy, %"
CLEAN = "clean accuracy, %"
_ATTACK = {"eps": 0.3, "num_steps": 40, "step_size": 0.01, "num_restarts": 10}
_QUICK = {"num_steps": 3, "num_restarts": 2}
# Images per batch of torchattacks; jaxrobust's is the default of `evaluate`.
_TORCH_BATCH = 100


def prepare_mnist(
    training: str, settings: dict[str, Any], quick: dict[str, Any]
) -> Callable[[Options], Problem]:
    """Return what loads, or trains, the model and loads 1,000 test images."""

    def prepare(options: Options) -> Problem:
        import jaxrobust as jr
        from benchmarks import weights

        name = "digits" if options.quick else "mnist"
        data = jr.data.load(name, data_dir=options.data_dir)
        data = data.subset(None, 20 if options.quick else 1000)
        model, spec, source = _model(training, data, options)
        x = np.asarray(data.images(data.x_test), np.float32)
        problem = weights.pack(model, spec, x[:8])
        problem.settings.update(settings, data=name, model_from=source)
        problem.settings.update(quick if options.quick else {})
        problem.arrays.update(x=x, y=np.asarray(data.y_test, np.int64))
        return problem

    return prepare


def _model(training: str, data: Any, options: Options) -> tuple[Any, dict, str]:
    """Return the model, how to create it, and where it comes from."""
    import jaxrobust as jr
    from experiments import published_weights

    spec: dict[str, Any] = {
        "name": "small_convnet",
        "input_shape": data.input_shape,
        "num_classes": data.num_classes,
    }
    if options.checkpoints is not None:
        path = options.checkpoints / training / "best"
        model, metadata = jr.training.load_checkpoint(path)
        return model, metadata["model"], "python -m experiments.robustness_table"
    if training == "PGD" and options.weights is not None:
        model = published_weights.load_weights(options.weights)
        return model, spec, f"public {options.weights.name}"
    if training == "PGD" and not options.quick:
        raise ValueError(
            "a robust model is needed: give --checkpoints DIR, the --out of python -m "
            "experiments.robustness_table --dataset mnist, or --weights FILE, weights of "
            "locuslab/fast_adversarial as npz."
        )
    return _trained(spec, data), spec, "one epoch of standard training"


def _trained(spec: dict[str, Any], data: Any) -> Any:
    import jax
    import optax

    import jaxrobust as jr

    return jr.training.fit(
        jr.models.create(**spec),
        jr.training.standard(),
        optax.adam(1e-3),
        data.x_train,
        data.y_train,
        num_epochs=1,
        batch_size=100,
        key=jax.random.key(0),
        scale=data.scale,
        progress=False,
    ).last


def _jaxrobust(problem: Problem) -> Side:
    import jax
    import jax.numpy as jnp

    import jaxrobust as jr
    from benchmarks import weights

    settings = problem.settings
    pgd = jr.PGD(num_steps=settings["num_steps"], step_size=settings["step_size"])
    attack = jr.Restarts(pgd, settings["num_restarts"])
    logits_fn = jr.models.logits_fn(weights.unpack(problem))
    options = dict(attack=attack, threat=jr.Linf(settings["eps"]))
    x, y = (jnp.asarray(problem.arrays[name]) for name in ("x", "y"))

    return Side(
        lambda: jr.evaluate(logits_fn, x, y, key=jax.random.key(0), **options),
        describe_report,
    )


def describe_report(report: Any) -> Outcome:
    """Return the figures of a report of `jr.evaluate`."""
    cost = report.cost or {}
    figures = {
        ACCURACY: 100 * report.robust_accuracy,
        CLEAN: 100 * report.clean_accuracy,
    }
    return Outcome(cost.get("gradients"), cost.get("forwards"), figures)


def _torchattacks(problem: Problem) -> Side:
    import torchattacks

    settings = problem.settings
    options = dict(
        eps=settings["eps"], alpha=settings["step_size"], steps=settings["num_steps"]
    )
    return torch_side(
        problem,
        lambda model: [
            torchattacks.PGD(model, **options) for _ in range(settings["num_restarts"])
        ],
        _TORCH_BATCH,
    )


def torch_side(problem: Problem, attacks: Callable, batch_size: int) -> Side:
    """Return the side that runs `attacks(model)` one after the other on what is left."""
    import torch
    import torchattacks

    from benchmarks import torch_models

    counter = peers.Counter()
    model = counter.watch_torch(torch_models.load(problem))
    x = torch_models.images(problem.arrays["x"])
    y = torch.from_numpy(problem.arrays["y"])
    attack = torchattacks.MultiAttack(attacks(model))

    def run() -> tuple[Any, Any]:
        torch.manual_seed(0)
        counter.clear()
        correct, robust = [], []
        for images, labels in zip(
            x.split(batch_size), y.split(batch_size), strict=True
        ):
            x_adv = attack(images, labels)
            with torch.no_grad():
                correct.append(model(images).argmax(1) == labels)
                robust.append(correct[-1] & (model(x_adv).argmax(1) == labels))
        return torch.cat(correct), torch.cat(robust)

    def describe(result: tuple[Any, Any]) -> Outcome:
        correct, robust = (100 * float(flags.float().mean()) for flags in result)
        figures = {ACCURACY: robust, CLEAN: correct}
        return Outcome(counter.gradients, counter.forwards, figures)

    return Side(run, describe)


def _task(name: str, title: str, training: str, target: Target) -> Task:
    return Task(
        name,
        f"robust accuracy, {title}, PGD-40 x 10, 1,000 images",
        prepare_mnist(training, _ATTACK, _QUICK),
        {OURS: _jaxrobust, "torchattacks": _torchattacks},
        (target, agrees(ACCURACY, 0.2)),
        max_rounds=3,
    )


TASKS = [
    _task(
        "accuracy-standard",
        "standard MNIST model",
        "standard",
        at_least(5.0, "torchattacks"),
    ),
    _task(
        "accuracy-robust",
        "PGD-trained MNIST model",
        "PGD",
        at_least(1.0, "torchattacks"),
    ),
]
