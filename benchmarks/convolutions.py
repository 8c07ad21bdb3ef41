"""Convolutions and their gradients on the CPU: XLA's own and those of this library.

Command   python -m benchmarks.convolutions            (--quick: a rehearsal)

Time      about 10 minutes on 2 cores that do nothing else; --quick about 2

Expected  in a loop, XLA's own gradients take several times what they take outside of it;
          those of `fast_convolutions` take about as long in a loop as XLA's outside, the
          kernel's gradient and the gradient of max-pooling less.

Each figure is the median of runs taken in turn, in milliseconds for one evaluation:
"xla" is jax.lax outside of a loop, "xla in scan" and "fast in scan" are the body of a
`jax.lax.scan`, as in an attack. "nchw" rows have channels first, as in Equinox. A second
table has the forms of the forward pass (jaxrobust/_cpu/conv_forward.py), each in a scan.
"""

import dataclasses
import functools
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import rich.table
import tyro
from jax import lax

import jaxrobust as jr
from experiments import _common
from jaxrobust._cpu import conv_forward


@dataclasses.dataclass(frozen=True)
class Config:
    """Time convolutions, their gradients, and max-pooling."""

    out: pathlib.Path = pathlib.Path("benchmarks/results/convolutions.json")
    quick: bool = False
    """A tenth of the batch, 3 runs, nothing saved: to see that it works."""
    num_runs: int = 15
    length: int = 4
    """Evaluations in a loop."""
    only: str = ""
    """Measure only the cases whose name contains this."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One layer: images [batch, size, size, channels], a square kernel."""

    batch: int
    size: int
    channels: int
    features: int
    kernel: int
    stride: int = 1
    padding: Any = "SAME"
    layout: tuple[str, str, str] = ("NHWC", "HWIO", "NHWC")


_NCHW = ("NCHW", "OIHW", "NCHW")
_ONE = ((1, 1), (1, 1))
CASES = {
    "tutorial 1": Case(100, 28, 1, 32, 3),
    "tutorial 2": Case(100, 28, 32, 32, 3, 2, _ONE),
    "tutorial 3": Case(100, 14, 32, 64, 3),
    "tutorial 4": Case(100, 14, 64, 64, 3, 2, _ONE),
    "madry 1": Case(100, 28, 1, 32, 5),
    "madry 2": Case(100, 14, 32, 64, 5),
    "small 1": Case(100, 28, 1, 16, 4, 2, _ONE),
    "small 2": Case(100, 14, 16, 32, 4, 2, _ONE),
    "resnet stem": Case(16, 32, 3, 64, 3),
    "resnet 32": Case(16, 32, 64, 64, 3),
    "resnet 32 strided": Case(16, 32, 64, 128, 3, 2, _ONE),
    "resnet 32 shortcut": Case(16, 32, 64, 128, 1, 2, "VALID"),
    "resnet 16": Case(16, 16, 128, 128, 3),
    "resnet 16 strided": Case(16, 16, 128, 256, 3, 2, _ONE),
    "resnet 8": Case(16, 8, 256, 256, 3),
    "resnet 8 strided": Case(16, 8, 256, 512, 3, 2, _ONE),
    "resnet 4": Case(16, 4, 512, 512, 3),
    "pointwise": Case(16, 16, 128, 128, 1),
    "nchw": Case(100, 14, 32, 64, 3, 1, "SAME", _NCHW),
    "nchw strided": Case(100, 14, 64, 64, 3, 2, _ONE, _NCHW),
}
# Wide residual networks and a larger batch: where the forms differ most.
FORM_CASES = {
    name: case
    for name, case in CASES.items()
    if case.layout[0] == "NHWC" and case.padding != "VALID" and case.kernel > 1
} | {
    "resnet 8, batch 64": Case(64, 8, 256, 256, 3),
    "resnet 4, batch 64": Case(64, 4, 512, 512, 3),
    "wide resnet 32": Case(16, 32, 160, 160, 3),
    "wide resnet 16": Case(16, 16, 320, 320, 3),
    "wide resnet 8": Case(16, 8, 640, 640, 3),
}
POOLS = {"madry pool 1": (100, 28, 28, 32), "madry pool 2": (100, 14, 14, 64)}


def operations(case: Case) -> dict[str, tuple[Callable, jax.Array, jax.Array]]:
    """Return name -> (function of two arrays, the arrays), for one layer."""

    def conv(x, kernel):
        strides = (case.stride, case.stride)
        return lax.conv_general_dilated(
            x, kernel, strides, case.padding, dimension_numbers=case.layout
        )

    sizes = {"N": case.batch, "H": case.size, "W": case.size, "C": case.channels}
    side, ends = case.kernel, {"I": case.channels, "O": case.features}
    window: dict[str, int] = {"H": side, "W": side, **ends}
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], [sizes[axis] for axis in case.layout[0]])
    kernel = jax.random.normal(keys[1], [window[axis] for axis in case.layout[1]])
    g = jax.jit(conv)(x, kernel)

    def input_gradient(convolve, g, kernel):
        return jax.vjp(lambda x: convolve(x, kernel), x)[1](g)[0]

    def kernel_gradient(convolve, g, x):
        return jax.vjp(functools.partial(convolve, x), kernel)[1](g)[0]

    return {
        "forward": (lambda wrap, x, kernel: wrap(conv)(x, kernel), x, kernel),
        "input": (lambda wrap, *args: input_gradient(wrap(conv), *args), g, kernel),
        "kernel": (lambda wrap, *args: kernel_gradient(wrap(conv), *args), g, x),
    }


def pooling(shape: tuple[int, ...]) -> tuple[Callable, jax.Array, jax.Array]:
    """Return the gradient of 2x2 max-pooling with stride 2 and its arrays."""

    def pool(x):
        window = (1, 2, 2, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "SAME")

    # Rectified, as in the network: the zeros are ties.
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), shape))
    return lambda wrap, x, g: jax.vjp(wrap(pool), x)[1](g)[0], x, pool(x)


def in_scan(fn: Callable, length: int) -> Callable:
    """Return the jitted loop that evaluates `fn(carried, other)` so many times."""

    def loop(carried, other):
        def step(carry, _):
            value, _ = carry
            out = fn(value, other)
            # The result is kept whole, and the next turn depends on it, if too little to
            # change. A sum would be fused into the convolution, which no network has.
            return (value * (1 + 1e-30 * out.ravel()[0]), out), None

        shape = jax.eval_shape(fn, carried, other)
        start = carried, jnp.zeros(shape.shape, shape.dtype)
        return lax.scan(step, start, None, length=length)[0]

    return jax.jit(loop)


def times(fn: Callable, carried, other, config: Config) -> dict[str, float]:
    """Return the milliseconds of each way to run `fn`, in a loop and outside."""
    plain = functools.partial(fn, jr.plain_convolutions)
    fast = functools.partial(fn, jr.fast_convolutions)
    runs = {
        "xla": (jax.jit(plain), 1),
        "xla in scan": (in_scan(plain, config.length), config.length),
        "fast in scan": (in_scan(fast, config.length), config.length),
    }
    return medians(runs, carried, other, config.num_runs)


def form_times(case: Case, config: Config) -> dict[str, float]:
    """Return the milliseconds of each form of the forward pass."""
    _, x, kernel = operations(case)["forward"]
    runs = {}
    for name in ("chosen", *conv_forward.FORMS):

        def convolve(x, kernel, form=name):
            return conv_forward.convolve(
                x,
                kernel,
                form=None if form == "chosen" else form,
                window_strides=(case.stride, case.stride),
                padding=_pads(case),
            )

        if name != "winograd" or (case.kernel, case.stride) == (3, 1):
            runs[name] = (in_scan(convolve, config.length), config.length)
    return medians(runs, x, kernel, config.num_runs)


def _pads(case: Case) -> tuple[tuple[int, int], ...]:
    if case.padding != "SAME":
        return case.padding
    sizes, kernel = (case.size, case.size), (case.kernel, case.kernel)
    return tuple(lax.padtype_to_pads(sizes, kernel, (case.stride,) * 2, "SAME"))


def medians(runs: dict, carried, other, num_runs: int) -> dict[str, float]:
    """Return the milliseconds of each (function, evaluations), medians of turns."""
    for run, _ in runs.values():
        jax.block_until_ready(run(carried, other))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(num_runs):
        for name, (run, count) in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run(carried, other))
            seconds[name].append((time.perf_counter() - start) / count)
    return {name: round(1e3 * statistics.median(s), 3) for name, s in seconds.items()}


def measure(config: Config) -> dict[str, dict[str, float]]:
    """Return "layer: operation" -> milliseconds."""
    found = {}
    for name, case in CASES.items():
        if config.only not in name:
            continue
        if config.quick:
            case = dataclasses.replace(case, batch=max(2, case.batch // 10))
        for operation, (fn, carried, other) in operations(case).items():
            found[f"{name}: {operation}"] = times(fn, carried, other, config)
            _common.console.print(f"{name}: {operation}", style="dim")
    for name, (batch, *shape) in POOLS.items():
        if config.only in name:
            shape = (batch // 10 if config.quick else batch, *shape)
            found[f"{name}: input"] = times(*pooling(shape), config)
    return found


def measure_forms(config: Config) -> dict[str, dict[str, float]]:
    """Return layer -> milliseconds of each form."""
    found = {}
    for name, case in FORM_CASES.items():
        if config.only in name:
            if config.quick:
                case = dataclasses.replace(case, batch=max(2, case.batch // 10))
            found[name] = form_times(case, config)
            _common.console.print(f"{name}: forms", style="dim")
    return found


def form_table(found: dict[str, dict[str, float]]) -> rich.table.Table:
    """Return the figures of the forms as a table."""
    columns = ("chosen", *conv_forward.FORMS)
    result = rich.table.Table("", *columns)
    for name, row in found.items():
        result.add_row(name, *(f"{row[c]:.2f}" if c in row else "" for c in columns))
    return result


def table(found: dict[str, dict[str, float]]) -> rich.table.Table:
    """Return the figures as a table."""
    result = rich.table.Table("", "xla", "xla in scan", "fast in scan", "xla / fast")
    for name, row in found.items():
        ratio = row["xla in scan"] / row["fast in scan"]
        result.add_row(name, *(f"{ms:.2f}" for ms in row.values()), f"{ratio:.1f}")
    return result


def main(config: Config) -> None:
    """Measure, print and save."""
    if jax.default_backend() != "cpu":
        raise ValueError(
            "this benchmark is about the CPU; run it with JAX_PLATFORMS=cpu."
        )
    provenance = _common.provenance()
    if config.quick:
        config = dataclasses.replace(config, num_runs=3)
    found = measure(config)
    _common.console.print(table(found))
    forms = measure_forms(config)
    _common.console.print(form_table(forms))
    if config.quick:
        return
    result = {
        "provenance": provenance,
        "config": _common.config_of(config),
        "layers": {
            name: dataclasses.asdict(case)
            for name, case in (CASES | FORM_CASES).items()
        },
        "milliseconds": found,
        "forms": forms,
    }
    _common.write_json(config.out, result)


if __name__ == "__main__":
    with _common.friendly_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.convolutions"))
