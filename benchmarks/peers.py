"""The other libraries: what they need, and how their calls of the model are counted."""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

from benchmarks.task import OURS

# jaxrobust without what a task is about: one run for each eps.
SEPARATELY = "jaxrobust, separate runs"

# The modules that each side needs.
NEEDS = {
    OURS: (),
    SEPARATELY: (),
    "torchattacks": ("torch", "torchattacks"),
    "foolbox-torch": ("torch", "foolbox"),
    "foolbox-jax": ("foolbox",),
    "torch": ("torch",),
}
HOW_TO_INSTALL = "python -m pip install -e '.[bench]'"


def missing(peer: str) -> list[str]:
    """Return the modules that a peer needs and that are not installed."""
    return [name for name in NEEDS[peer] if importlib.util.find_spec(name) is None]


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Counter:
    """Counts the evaluations of a model, in examples: passes back, passes without."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start again."""
        self.gradients = self.passes = 0

    @property
    def forwards(self) -> int:
        """Forward passes that no gradient was taken of."""
        return self.passes - self.gradients

    def watch_torch(self, model: Any) -> Any:
        """Return the torch module with hooks on its forward and backward passes."""

        def on_forward(_module: Any, _inputs: Any, output: Any) -> None:
            self.passes += len(output)
            if output.requires_grad:
                output.register_hook(on_backward)

        def on_backward(grad: Any) -> None:
            self.gradients += len(grad)

        model.register_forward_hook(on_forward)
        return model

    def watch_jax(self, function: Callable) -> Callable:
        """Return a function that is called, not compiled, by what differentiates it."""
        import jax

        def counted(x: Any) -> Any:
            self.passes += len(x)
            # Differentiation, and nothing else in an uncompiled loop, passes tracers.
            self.gradients += len(x) * isinstance(x, jax.core.Tracer)
            return function(x)

        return counted
