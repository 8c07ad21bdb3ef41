"""PGD on one batch: the same model, weights, steps, radius and kind of start."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.task import OURS, Options, Outcome, Problem, Side, Task, at_least

# How far the attack got: the libraries must have done the same work.
LOSS = "mean loss reached"


def _prepare(
    model: str, input_shape: tuple[int, ...], attack: dict[str, Any], quick: dict
) -> Callable[[Options], Problem]:
    """Return what makes random weights, images and labels of the given shapes."""

    def prepare(options: Options) -> Problem:
        from benchmarks import weights

        settings = attack | (quick if options.quick else {})
        spec = {"name": model, "input_shape": input_shape, "num_classes": 10}
        if model == "preact_resnet18" and options.quick:
            spec["width"] = 4
        rng = np.random.default_rng(0)
        x = rng.random((settings["batch_size"], *input_shape), np.float32)
        problem = weights.pack(weights.create(spec), spec, x[:8])
        problem.settings.update(settings)
        problem.arrays.update(x=x, y=rng.integers(0, 10, len(x)))
        return problem

    return prepare


def _jaxrobust(problem: Problem) -> Side:
    import jax
    import jax.numpy as jnp

    import jaxrobust as jr
    from benchmarks import weights

    settings = problem.settings
    # The last iterate, as the peers return it: no pass more than they need.
    attack = jr.PGD(
        num_steps=settings["num_steps"],
        step_size=settings["step_size"],
        keep_best=False,
    )
    logits_fn = jr.models.logits_fn(weights.unpack(problem))
    x, y = (jnp.asarray(problem.arrays[name]) for name in ("x", "y"))
    threat, key = jr.Linf(settings["eps"]), jax.random.key(0)

    def describe(x_adv: Any) -> Outcome:
        loss = jr.losses.cross_entropy(logits_fn(x_adv), y).mean()
        counts = (len(x) * count for count in attack.total_cost())
        return Outcome(*counts, figures={LOSS: float(loss)})

    return Side(
        lambda: jax.block_until_ready(attack(logits_fn, x, y, threat=threat, key=key)),
        describe,
    )


def _torch_side(problem: Problem, make: Callable[[Any, Any, Any], Callable]) -> Side:
    """Return the side of `make(model, x, y) -> run`."""
    import torch

    from benchmarks import torch_models

    counter = peers.Counter()
    model = counter.watch_torch(torch_models.load(problem))
    x = torch_models.images(problem.arrays["x"])
    y = torch.from_numpy(problem.arrays["y"])
    attack = make(model, x, y)

    def run() -> Any:
        torch.manual_seed(0)
        counter.clear()
        return attack()

    def describe(x_adv: Any) -> Outcome:
        counts = counter.gradients, counter.forwards
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(model(x_adv), y)
        return Outcome(*counts, figures={LOSS: float(loss)})

    return Side(run, describe)


def _torchattacks(problem: Problem) -> Side:
    import torchattacks

    settings = problem.settings

    def make(model: Any, x: Any, y: Any) -> Callable:
        attack = torchattacks.PGD(
            model,
            eps=settings["eps"],
            alpha=settings["step_size"],
            steps=settings["num_steps"],
        )
        return lambda: attack(x, y)

    return _torch_side(problem, make)


def _foolbox_attack(problem: Problem) -> Any:
    import foolbox

    return foolbox.attacks.LinfPGD(
        abs_stepsize=problem.settings["step_size"],
        steps=problem.settings["num_steps"],
        random_start=True,
    )


def _foolbox_torch(problem: Problem) -> Side:
    import foolbox

    attack, eps = _foolbox_attack(problem), problem.settings["eps"]

    def make(model: Any, x: Any, y: Any) -> Callable:
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
        return lambda: attack(wrapped, x, y, epsilons=eps)[1]

    return _torch_side(problem, make)


def _foolbox_jax(problem: Problem) -> Side:
    import foolbox
    import jax
    import jax.numpy as jnp

    import jaxrobust as jr
    from benchmarks import weights

    counter = peers.Counter()
    attack, eps = _foolbox_attack(problem), problem.settings["eps"]
    logits_fn = jr.models.logits_fn(weights.unpack(problem))
    compiled = jax.jit(lambda x: logits_fn(x))
    model = foolbox.JAXModel(counter.watch_jax(compiled), bounds=(0, 1))
    x, y = (jnp.asarray(problem.arrays[name]) for name in ("x", "y"))

    def run() -> Any:
        np.random.seed(0)
        counter.clear()
        return jax.block_until_ready(attack(model, x, y, epsilons=eps)[1])

    def describe(x_adv: Any) -> Outcome:
        counts = counter.gradients, counter.forwards
        loss = jr.losses.cross_entropy(compiled(x_adv), y).mean()
        return Outcome(*counts, figures={LOSS: float(loss)})

    return Side(run, describe)


_SIDES = {
    OURS: _jaxrobust,
    "torchattacks": _torchattacks,
    "foolbox-torch": _foolbox_torch,
    "foolbox-jax": _foolbox_jax,
}
_MNIST = {"batch_size": 100, "eps": 0.3, "num_steps": 40, "step_size": 0.01}
_CIFAR = {"batch_size": 16, "eps": 8 / 255, "num_steps": 10, "step_size": 2 / 255}
_TARGETS = (at_least(1.0),)

TASKS = [
    Task(
        "pgd-tutorial",
        "PGD-40, batch 100, tutorial ConvNet",
        _prepare(
            "tutorial_convnet", (28, 28, 1), _MNIST, {"batch_size": 4, "num_steps": 2}
        ),
        _SIDES,
        _TARGETS,
    ),
    Task(
        "pgd-madry",
        "PGD-40, batch 100, Madry ConvNet",
        _prepare(
            "madry_convnet", (28, 28, 1), _MNIST, {"batch_size": 4, "num_steps": 2}
        ),
        _SIDES,
        _TARGETS,
    ),
    Task(
        "pgd-resnet",
        "PGD-10, batch 16, PreActResNet-18, 32x32",
        _prepare(
            "preact_resnet18", (32, 32, 3), _CIFAR, {"batch_size": 2, "num_steps": 2}
        ),
        _SIDES,
        _TARGETS,
    ),
]
