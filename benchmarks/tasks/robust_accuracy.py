"""The robust accuracy of an MNIST model under PGD with restarts, until all is known.

torchattacks has no restarts. Its users chain ten `PGD` in a `MultiAttack`, which gives
the next one only the images that are still classified correctly; so does this file.
foolbox is left out: its restarts (`attack.repeat`) attack every image every time.
"""

import pathlib
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
# Images per batch of torchattacks; jaxrobust's is the default of `evaluate`.
_TORCH_BATCH = 100


def _prepare(training: str) -> Callable[[Options], Problem]:
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
        quick = {"num_steps": 3, "num_restarts": 2} if options.quick else {}
        problem.settings.update(_ATTACK, **quick, data=name, model_from=source)
        problem.arrays.update(x=x, y=np.asarray(data.y_test, np.int64))
        return problem

    return prepare


def _model(training: str, data: Any, options: Options) -> tuple[Any, dict, str]:
    """Return the model, how to create it, and where it comes from."""
    import jaxrobust as jr

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
        return _public(spec, options.weights), spec, f"public {options.weights.name}"
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


def _public(spec: dict[str, Any], path: pathlib.Path) -> Any:
    """Read weights in torch's layout; see `jaxrobust.models.SmallConvNet`."""
    import jax.numpy as jnp

    import jaxrobust as jr

    model: Any = jr.models.create(**spec)
    with np.load(path) as file:
        for layer, number in ((model.conv1, 0), (model.conv2, 2)):
            kernel = file[f"{number}.weight"].transpose(2, 3, 1, 0)
            layer.kernel[...] = jnp.asarray(kernel)
            layer.bias[...] = jnp.asarray(file[f"{number}.bias"])
        # 28x28 images are 7x7 with 32 channels when they are flattened.
        blocks = file["5.weight"].reshape(100, 32, 7, 7).transpose(2, 3, 1, 0)
        model.dense.kernel[...] = jnp.asarray(blocks.reshape(-1, 100))
        model.dense.bias[...] = jnp.asarray(file["5.bias"])
        model.output.kernel[...] = jnp.asarray(file["7.weight"].T)
        model.output.bias[...] = jnp.asarray(file["7.bias"])
    return model


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

    def describe(report: jr.Report) -> Outcome:
        cost = report.cost or {}
        figures = {
            ACCURACY: 100 * report.robust_accuracy,
            CLEAN: 100 * report.clean_accuracy,
        }
        return Outcome(cost.get("gradients"), cost.get("forwards"), figures)

    return Side(
        lambda: jr.evaluate(logits_fn, x, y, key=jax.random.key(0), **options), describe
    )


def _torchattacks(problem: Problem) -> Side:
    import torch
    import torchattacks

    from benchmarks import torch_models

    settings, counter = problem.settings, peers.Counter()
    model = counter.watch_torch(torch_models.load(problem))
    x = torch_models.images(problem.arrays["x"])
    y = torch.from_numpy(problem.arrays["y"])
    options = dict(
        eps=settings["eps"], alpha=settings["step_size"], steps=settings["num_steps"]
    )
    restarts = range(settings["num_restarts"])
    attack = torchattacks.MultiAttack(
        [torchattacks.PGD(model, **options) for _ in restarts]
    )

    def run() -> tuple[Any, Any]:
        torch.manual_seed(0)
        counter.clear()
        correct, robust = [], []
        for images, labels in zip(
            x.split(_TORCH_BATCH), y.split(_TORCH_BATCH), strict=True
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
        _prepare(training),
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
