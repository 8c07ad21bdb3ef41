"""An epoch of adversarial training, by `jaxrobust.training.fit` and by a torch loop.

A tenth of the steps of an epoch is timed, and the time is multiplied by ten. `fit` runs
two such tenths: the first compiles, the second is the time. On both sides the attack sees
the model in evaluation mode, by running statistics, and training updates these.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.task import OURS, Options, Outcome, Problem, Side, Task, at_least

LOSS = "mean training loss"
_MNIST = {
    "model": {"name": "tutorial_convnet", "input_shape": (28, 28, 1)},
    "data": "mnist",
    "batch_size": 100,
    "eps": 0.3,
    "learning_rate": 0.1,
    "timed_steps": 60,
    "steps_per_epoch": 600,
}
_CIFAR10 = _MNIST | {
    "model": {"name": "small_resnet", "input_shape": (32, 32, 3), "width": 32},
    "data": "cifar10",
    "batch_size": 128,
    "eps": 8 / 255,
    "timed_steps": 39,
    "steps_per_epoch": 390,  # the last 80 of 50,000 images wait for the next epoch
}


def _prepare(training: dict[str, Any]) -> Callable[[Options], Problem]:
    """Return what makes the initial weights and takes the data, or noise without them."""

    def prepare(options: Options) -> Problem:
        from benchmarks import weights

        settings = dict(training)
        spec: dict[str, Any] = settings.pop("model") | {"num_classes": 10}
        if options.quick:
            # Not fewer channels: with 4 the twin's backward pass in channels_last ends in
            # a segmentation fault (torch 2.13.0 on the CPU).
            settings |= {"batch_size": 4, "timed_steps": 2}
        num = settings["batch_size"] * settings["timed_steps"]
        name, x, y = _data(settings["data"], spec["input_shape"], num, options)
        problem = weights.pack(weights.create(spec), spec, x[:8])
        problem.settings.update(settings, data=name)
        problem.arrays.update(x=x, y=np.asarray(y, np.int64))
        return problem

    return prepare


def _data(name: str, shape: tuple, num: int, options: Options) -> tuple[str, Any, Any]:
    """Return the name, images and labels of the first examples, or of noise."""
    import jaxrobust as jr

    if options.data_dir is not None:
        try:
            data = jr.data.load(name, data_dir=options.data_dir)
        except FileNotFoundError:
            if name == "mnist":  # what --data-dir is for; CIFAR-10 may lie there too
                raise
        else:
            x = np.asarray(data.images(data.x_train[:num]), np.float32)
            return name, x, data.y_train[:num]
    rng = np.random.default_rng(0)
    return "noise", rng.random((num, *shape), np.float32), rng.integers(0, 10, num)


def _outcome(
    problem: Problem, gradients: int, forwards: int, loss: float, **times: Any
) -> Outcome:
    """Return the outcome of an epoch; `gradients` and `forwards` are for an example."""
    settings = problem.settings
    factor = settings["steps_per_epoch"] / settings["timed_steps"]
    examples = settings["batch_size"] * settings["steps_per_epoch"]
    if "seconds" in times:
        times["seconds"] *= factor
    return Outcome(gradients * examples, forwards * examples, {LOSS: loss}, **times)


def _jaxrobust(problem: Problem) -> Side:
    import jax
    import optax

    import jaxrobust as jr
    from benchmarks import weights

    settings = problem.settings
    if settings["num_steps"] == 1:
        attack: Any = jr.FGSM(
            step_size=settings["step_size"], random_start=settings["random_start"]
        )
    else:
        attack = jr.PGD(
            num_steps=settings["num_steps"],
            step_size=settings["step_size"],
            keep_best=False,
        )
    objective = jr.training.adversarial(attack, threat=jr.Linf(settings["eps"]))
    model = weights.unpack(problem)

    def run() -> list[dict[str, Any]]:
        return jr.training.fit(
            model,
            objective,
            optax.sgd(settings["learning_rate"]),
            problem.arrays["x"],
            problem.arrays["y"],
            num_epochs=2,
            batch_size=settings["batch_size"],
            key=jax.random.key(0),
            progress=False,
        ).history

    def describe(history: list[dict[str, Any]]) -> Outcome:
        first, total = (epoch["seconds"] for epoch in history)
        return _outcome(
            problem,
            attack.total_cost().gradients + 1,  # and the one that trains
            attack.total_cost().forwards,
            history[-1]["train_loss"],
            seconds=total - first,
            compile_seconds=max(0.0, 2 * first - total),
        )

    return Side(run, describe)


def _torch(problem: Problem) -> Side:
    import torch

    from benchmarks import torch_models

    settings, counter = problem.settings, peers.Counter()
    model = counter.watch_torch(torch_models.load(problem))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch_models.images(problem.arrays["x"])
    y = torch.from_numpy(problem.arrays["y"])
    batch_size = settings["batch_size"]
    cross_entropy = torch.nn.functional.cross_entropy

    def perturb(x: Any, y: Any) -> Any:
        eps, step_size = settings["eps"], settings["step_size"]
        x_adv = x.clone()
        if settings["random_start"]:
            x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp_(0, 1)
        for _ in range(settings["num_steps"]):
            x_adv.requires_grad_()
            (grad,) = torch.autograd.grad(cross_entropy(model(x_adv), y), x_adv)
            x_adv = x_adv.detach() + step_size * grad.sign()
            x_adv = x + (x_adv - x).clamp_(-eps, eps)
            x_adv = x_adv.clamp_(0, 1)
        return x_adv

    def epoch() -> float:
        torch.manual_seed(0)
        counter.clear()
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=settings["learning_rate"])
        losses = []
        order = torch.randperm(len(x))
        for index in order.split(batch_size):
            images, labels = x[index], y[index]
            model.eval()  # the attack sees the running statistics, as in `fit`
            x_adv = perturb(images, labels)
            model.train()
            loss = cross_entropy(model(x_adv), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    def run() -> tuple[float, float]:
        begin = time.perf_counter()
        return epoch(), time.perf_counter() - begin

    def describe(result: tuple[float, float]) -> Outcome:
        loss, seconds = result
        counts = counter.gradients // len(x), counter.forwards // len(x)
        return _outcome(problem, *counts, loss, seconds=seconds)

    return Side(run, describe)


def _task(name: str, title: str, training: dict[str, Any], **attack: Any) -> Task:
    prepare = _prepare(training | attack)
    sides = {OURS: _jaxrobust, "torch": _torch}
    return Task(name, title, prepare, sides, (at_least(1.0),))


_TUTORIAL = "training epoch, tutorial ConvNet, 60,000 images"
TASKS = [
    _task(
        "train-fgsm",
        f"FGSM-{_TUTORIAL}",
        _MNIST,
        num_steps=1,
        step_size=0.3,
        random_start=False,
    ),
    _task(
        "train-pgd7",
        f"PGD-7-{_TUTORIAL}",
        _MNIST,
        num_steps=7,
        step_size=0.075,
        random_start=True,
    ),
    _task(
        "train-fgsm-rs-cifar",
        "FGSM-RS-training epoch, small CIFAR-10 network, 49,920 images",
        _CIFAR10,
        num_steps=1,
        step_size=1.25 * 8 / 255,
        random_start=True,
    ),
]
