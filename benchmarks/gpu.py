"""Images per second of PGD-10 training and PGD-20 attack, PreActResNet-18, CIFAR-10 shapes.

Command   python -m benchmarks.gpu                      (--quick: tiny, runs on a CPU)
          python -m benchmarks.gpu --profile DIR        (a trace of JAX's side instead)

Time      about ten minutes on one GPU

Expected  a ratio of at least 1 in float32 by TF32 and in bfloat16; the table and
          benchmarks/results/gpu.json

Both sides use TF32, or compute in bfloat16 on float32 weights. torch has channels_last
and, on a GPU, torch.compile. The share is that of the matrix product measured beside it
in the same library and type; a model's FLOPs are those of its convolutions and products.
"""

import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro

from benchmarks import run
from benchmarks.task import OURS, Options, Outcome, Problem, Side, Task, at_least
from experiments import _common

SPEED, PEAK, SHARE = "images/s", "matmul, TFLOP/s", "share of matmul, %"
_SETTINGS = {"eps": 8 / 255, "step_size": 2 / 255, "learning_rate": 0.1, "size": 8192}
_QUICK = {"batch_size": 2, "num_batches": 2, "num_steps": 2, "size": 64}


def _prepare(num_steps: int, batch_size: int, num_batches: int, dtype: str):
    """Return what makes weights, images and the FLOPs of one forward pass."""

    def prepare(options: Options) -> Problem:
        from benchmarks import weights

        settings: dict[str, Any] = _SETTINGS | {
            "num_steps": num_steps,
            "batch_size": batch_size,
            "num_batches": num_batches,
            "dtype": dtype,
        }
        settings |= _QUICK if options.quick else {}
        spec: dict[str, Any] = {
            "name": "preact_resnet18",
            "input_shape": (32, 32, 3),
            "num_classes": 10,
        }
        if options.quick:
            spec["width"] = 4
        rng = np.random.default_rng(0)
        num = settings["batch_size"] * settings["num_batches"]
        x = rng.random((num, 32, 32, 3), np.float32)
        model = weights.create(spec)
        problem = weights.pack(model, spec, x[:2])
        problem.settings.update(settings, forward_flops=_forward_flops(model, x[:1]))
        problem.arrays.update(x=x, y=rng.integers(0, 10, num))
        return problem

    return prepare


def _forward_flops(model: Any, x: np.ndarray) -> float:
    """Return XLA's count for one image, before it has replaced operations."""
    import jax

    import jaxrobust as jr

    lowered: Any = jax.jit(jr.models.logits_fn(model)).lower(x)
    return float(lowered.cost_analysis()["flops"])


def _outcome(problem: Problem, passes: int, seconds: float, peak: float, memory: Any):
    """Return the outcome; `passes` are in units of one forward pass of an image."""
    speed = len(problem.arrays["x"]) / seconds
    share = speed * passes * problem.settings["forward_flops"] / peak
    figures = {SPEED: speed, PEAK: peak / 1e12, SHARE: 100 * share}
    return Outcome(figures=figures, seconds=seconds, peak_bytes=memory)


# A gradient of the input is two forward passes' worth, training a third for the weights.
def _attack_passes(problem: Problem) -> int:
    return 2 * problem.settings["num_steps"]


def _train_passes(problem: Problem) -> int:
    return _attack_passes(problem) + 3


def _jax_model(problem: Problem) -> Any:
    """Return the model; float32 convolutions are TF32 on NVIDIA by default."""
    import jax.numpy as jnp
    from flax import nnx

    from benchmarks import weights

    model = weights.unpack(problem)
    if problem.settings["dtype"] == "bfloat16":
        for _, module in nnx.iter_modules(model):
            if isinstance(module, nnx.Conv | nnx.Linear | nnx.BatchNorm):
                module.dtype = jnp.bfloat16
    return model


def _jax_peak(problem: Problem) -> float:
    """Return the FLOP/s of a product of two square matrices."""
    import jax
    import jax.numpy as jnp

    size, count = problem.settings["size"], 10
    a = jnp.full((size, size), 1 / size, problem.settings["dtype"])
    product = jax.jit(lambda a: jax.lax.fori_loop(0, count, lambda _, b: b @ a, a))
    return 2 * size**3 * count / _fastest(lambda: product(a).block_until_ready())


def _fastest(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def _jax_memory() -> int | None:
    import jax

    stats = jax.local_devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else None


def _pgd(problem: Problem) -> Any:
    import jaxrobust as jr

    settings = problem.settings
    return jr.PGD(
        num_steps=settings["num_steps"],
        step_size=settings["step_size"],
        keep_best=False,
    )


def _jaxrobust_train(problem: Problem) -> Side:
    import jax
    import optax

    import jaxrobust as jr

    settings, model, peak = problem.settings, _jax_model(problem), _jax_peak(problem)
    threat = jr.Linf(settings["eps"])
    objective = jr.training.adversarial(_pgd(problem), threat=threat)

    def train() -> list[dict[str, Any]]:
        return jr.training.fit(
            model,
            objective,
            optax.sgd(settings["learning_rate"], momentum=0.9),
            problem.arrays["x"],
            problem.arrays["y"],
            num_epochs=2,
            batch_size=settings["batch_size"],
            key=jax.random.key(0),
            progress=False,
        ).history

    def describe(history: list[dict[str, Any]]) -> Outcome:
        first, total = (epoch["seconds"] for epoch in history)
        passes = _train_passes(problem)
        outcome = _outcome(problem, passes, total - first, peak, _jax_memory())
        return dataclasses.replace(outcome, compile_seconds=max(0.0, 2 * first - total))

    return Side(train, describe)


def _jaxrobust_attack(problem: Problem) -> Side:
    import jax
    import jax.numpy as jnp

    import jaxrobust as jr

    attack, peak = _pgd(problem), _jax_peak(problem)
    logits_fn = jr.models.logits_fn(_jax_model(problem))
    threat, key = jr.Linf(problem.settings["eps"]), jax.random.key(0)
    num_batches = problem.settings["num_batches"]
    x, y = (jnp.split(problem.arrays[name], num_batches) for name in ("x", "y"))

    def attack_all() -> float:
        begin = time.perf_counter()
        for images, labels in zip(x, y, strict=True):
            x_adv = attack(logits_fn, images, labels, threat=threat, key=key)
            x_adv.block_until_ready()
        return time.perf_counter() - begin

    passes = _attack_passes(problem)
    return Side(attack_all, lambda s: _outcome(problem, passes, s, peak, _jax_memory()))


def _torch_side(problem: Problem, is_training: bool) -> Side:
    import torch

    from benchmarks import torch_models

    settings = problem.settings
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    dtype = getattr(torch, settings["dtype"])
    model = torch_models.load(problem).to(device)
    compiled = torch.compile(model) if device == "cuda" else model
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings["learning_rate"], momentum=0.9
    )
    eps, step_size = settings["eps"], settings["step_size"]
    size = settings["batch_size"]
    x = torch_models.images(problem.arrays["x"]).to(device)
    y = torch.from_numpy(problem.arrays["y"]).to(device)

    def loss(x: Any, y: Any) -> Any:
        with torch.autocast(device, dtype, enabled=dtype is torch.bfloat16):
            logits = compiled(x)
        return torch.nn.functional.cross_entropy(logits.float(), y)

    def perturb(x: Any, y: Any) -> Any:
        model.eval()
        x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp_(0, 1)
        for _ in range(settings["num_steps"]):
            x_adv.requires_grad_()
            (grad,) = torch.autograd.grad(loss(x_adv, y), x_adv)
            x_adv = x_adv.detach() + step_size * grad.sign()
            x_adv = (x + (x_adv - x).clamp_(-eps, eps)).clamp_(0, 1)
        return x_adv

    def work() -> float:
        begin = time.perf_counter()
        for images, labels in zip(x.split(size), y.split(size), strict=True):
            x_adv = perturb(images, labels)
            if is_training:
                model.train()
                optimizer.zero_grad()
                loss(x_adv, labels).backward()
                optimizer.step()
        _synchronize(device)
        return time.perf_counter() - begin

    peak = _torch_peak(settings["size"], device, dtype)
    passes = (_train_passes if is_training else _attack_passes)(problem)

    def describe(seconds: float) -> Outcome:
        memory = torch.cuda.max_memory_allocated() if device == "cuda" else None
        return _outcome(problem, passes, seconds, peak, memory)

    return Side(work, describe)


def _torch_peak(size: int, device: str, dtype: Any) -> float:
    """Return the FLOP/s of a product of two square matrices."""
    import torch

    a = torch.full((size, size), 1 / size, device=device, dtype=dtype)
    count = 10

    def work() -> None:
        b = a
        for _ in range(count):
            b = b @ a
        _synchronize(device)

    return 2 * size**3 * count / _fastest(work)


def _synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _tasks() -> dict[str, Task]:
    train = {
        OURS: _jaxrobust_train,
        "torch": functools.partial(_torch_side, is_training=True),
    }
    attack = {
        OURS: _jaxrobust_attack,
        "torch": functools.partial(_torch_side, is_training=False),
    }
    tasks = []
    for dtype, name in (("float32", "TF32"), ("bfloat16", "bfloat16")):
        for kind, title, sides, shape in (
            ("train", "PGD-10 training, batch 256", train, (10, 256, 40)),
            ("attack", "PGD-20 attack, batch 512", attack, (20, 512, 10)),
        ):
            tasks.append(
                Task(
                    f"{kind}-{name.lower()}",
                    f"{title}, PreActResNet-18, {name}",
                    _prepare(*shape, dtype),
                    sides,
                    (at_least(1.0),),
                )
            )
    return {task.name: task for task in tasks}


TASKS = _tasks()


@dataclasses.dataclass(frozen=True)
class Config(run.Config):
    """Measure jaxrobust and torch on the device that JAX finds."""

    profile: pathlib.Path | None = None
    """Measure nothing; write a trace of jaxrobust's side, after compilation, for
    TensorBoard or Perfetto."""


def main(config: Config) -> None:
    """Measure, or write the trace."""
    # Two libraries share the device, and this process needs next to nothing of it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if config.profile is None:
        run.main(config, TASKS, module="benchmarks.gpu", name="gpu")
        return
    import jax

    for name in config.tasks or TASKS:
        problem = TASKS[name].prepare(Options(config.quick))
        side = TASKS[name].sides[OURS](problem)
        side.run()
        with jax.profiler.trace(str(config.profile / name)):
            side.run()
        _common.console.print(f"wrote {config.profile / name}")


if __name__ == "__main__":
    with _common.friendly_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.gpu", description=__doc__))
