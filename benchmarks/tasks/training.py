"""An epoch of adversarial training, by `jaxrobust.training.fit` and by a torch loop.

60 of the 600 steps of an epoch are timed, and the time is multiplied by ten. `fit` runs
two such tenths: the first compiles, the second is the time.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.task import OURS, Options, Outcome, Problem, Side, Task, at_least

LOSS = "mean training loss"
_TRAINING = {
    "batch_size": 100,
    "eps": 0.3,
    "learning_rate": 0.1,
    "timed_steps": 60,
    "steps_per_epoch": 600,
}


def _prepare(attack: dict[str, Any]) -> Callable[[Options], Problem]:
    """Return what makes the initial weights and takes MNIST, or noise without it."""

    def prepare(options: Options) -> Problem:
        import jaxrobust as jr
        from benchmarks import weights

        settings: dict[str, Any] = _TRAINING | attack
        if options.quick:
            settings |= {"batch_size": 4, "timed_steps": 2}
        num = settings["batch_size"] * settings["timed_steps"]
        if options.data_dir is None:
            rng = np.random.default_rng(0)
            x = rng.random((num, 28, 28, 1), np.float32)
            y = rng.integers(0, 10, num)
        else:
            data = jr.data.load("mnist", data_dir=options.data_dir)
            x = np.asarray(data.images(data.x_train[:num]), np.float32)
            y = data.y_train[:num]
        spec = {
            "name": "tutorial_convnet",
            "input_shape": x.shape[1:],
            "num_classes": 10,
        }
        problem = weights.pack(weights.create(spec), spec, x[:8])
        settings["data"] = "noise" if options.data_dir is None else "mnist"
        problem.settings.update(settings)
        problem.arrays.update(x=x, y=np.asarray(y, np.int64))
        return problem

    return prepare


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
        attack: Any = jr.FGSM()
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
        eps, is_fgsm = settings["eps"], settings["num_steps"] == 1
        x_adv = x.clone()
        if not is_fgsm:
            x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp_(0, 1)
        for _ in range(settings["num_steps"]):
            x_adv.requires_grad_()
            (grad,) = torch.autograd.grad(cross_entropy(model(x_adv), y), x_adv)
            size = eps if is_fgsm else settings["step_size"]
            x_adv = x_adv.detach() + size * grad.sign()
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
            loss = cross_entropy(model(perturb(images, labels)), labels)
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


def _task(name: str, title: str, attack: dict[str, Any]) -> Task:
    return Task(
        name,
        f"{title}-training epoch, tutorial ConvNet, 60,000 images",
        _prepare(attack),
        {OURS: _jaxrobust, "torch": _torch},
        (at_least(1.0),),
    )


TASKS = [
    _task("train-fgsm", "FGSM", {"num_steps": 1}),
    _task("train-pgd7", "PGD-7", {"num_steps": 7, "step_size": 0.075}),
]
