"""Checks of the arguments of `fit`, on the host and before any work."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrobust import training
from jaxrobust._core import checks as _host_checks
from jaxrobust.attacks._base import Attack, as_attack, check_takes_labels
from jaxrobust.training.averages import SWA
from jaxrobust.training.monitor import Monitor


def check_parts(model: Any, objective: Any, optimizer: Any) -> None:
    """Raise where one of the three is something else."""
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"model is a {type(model).__name__}; fit trains modules of flax.nnx. For "
            "another framework write the loop with the objective and optax, see "
            "notebooks/10_your_own_model."
        )
    check_objective(objective, "objective")
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"optimizer={optimizer!r} is not an optimiser of optax: pass one such as "
            "optax.adam(1e-3)."
        )


def check_objective(objective: Any, name: str) -> None:
    """Raise where something else was passed as an objective."""
    factories = (getattr(training, name) for name in training.__all__)
    is_factory = any(objective is factory for factory in factories)
    if is_factory or not callable(objective) or isinstance(objective, Attack):
        raise TypeError(
            f"{name}={objective!r} is not an objective: pass jr.training.standard() or "
            "jr.training.adversarial(attack, threat)."
        )


def check_options(
    num_examples: int,
    batch_size: int | None,
    attacked_mode: str,
) -> int:
    """Check the ranges of what a step needs to know; return the size of a batch."""
    if batch_size is None:
        raise TypeError("batch_size is missing: give the number of examples of a step.")
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"batch_size is {batch_size}; it must lie between 1 and the number of "
            f"training examples, {num_examples}."
        )
    if attacked_mode not in ("eval", "train"):
        raise ValueError(f'attacked_mode is {attacked_mode!r}; use "eval" or "train".')
    return batch_size


def check_one_key(key: Any) -> jax.Array:
    """Return a typed key."""
    typed = _host_checks.check_key(key)
    if typed is None or typed.shape:
        raise TypeError(f"key={key!r} is not one PRNG key: pass jax.random.key(seed).")
    return typed


def check_counts(num_epochs: int, **steps: int | None) -> None:
    """Check the number of epochs, and numbers of steps that may be None."""
    if num_epochs < 1:
        raise ValueError(f"num_epochs is {num_epochs}; at least 1 is needed.")
    for name, value in steps.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(
                f"{name} is {value!r}; give a whole number of steps, at least 1, or None."
            )


def check_monitor(monitor: Any, threat: Any) -> Any:
    """Return the threat of a monitor, that of the objective by default."""
    if monitor.threat is not None:
        return monitor.threat
    if threat is None or type(threat) is tuple:
        raise ValueError(
            f"the monitor needs one threat, and the objective has {threat!r}: give "
            "Monitor(threat=...), such as jr.Linf(8 / 255)."
        )
    return threat


def check_is_monitor(monitor: Any) -> None:
    """Check what is to watch the training."""
    if monitor is not None and not isinstance(monitor, Monitor):
        raise TypeError(
            f"monitor={monitor!r} is not a monitor: pass jr.training.Monitor(), its "
            "attacks and numbers are arguments of that."
        )
    if monitor is not None and monitor.then is not None:
        check_objective(monitor.then, "Monitor(then=)")


def check_is_moving(average: Any) -> None:
    """Check that an average is taken at each step."""
    if isinstance(average, SWA):
        raise ValueError(
            f"average={average!r} is taken at the ends of late epochs, and steps need not "
            "know how many there are: give jr.training.EMA(decay), or call fit."
        )


def check_arrays(feed: Any, average: Any) -> None:
    """Check that data are there for another pass."""
    if not hasattr(feed, "x"):
        raise ValueError(
            f"average={average!r} estimates the BatchNorm statistics in a second pass over "
            "the data, and batches are drawn once: use EMA(decay), or arrays."
        )


def check_validation(name: str, x: Any, attack: Any, threat: Any) -> None:
    """Check that an attack, called so, comes with examples and a threat."""
    if attack is None:
        return
    if x is None or threat is None:
        raise ValueError(
            f"{name} needs the examples to attack and what is allowed: give "
            "validation=Validation(x_val, y_val, attack=..., threat=...), or no attack."
        )
    check_takes_labels(as_attack(attack), name)


def check_batch_size(batch_size: int | None, given: int) -> None:
    """Check that batches have the size that was said."""
    if batch_size not in (None, given):
        raise ValueError(
            f"batch_size is {batch_size}, and the first batch has {given} examples: the "
            "size is that of the batches, leave batch_size away."
        )


def check_steps(done: int, num_steps: int | None) -> None:
    """Check that a resumed run is not beyond its end."""
    if num_steps is not None and done > num_steps:
        raise ValueError(
            f"the run in `out` has done {done} steps, more than the {num_steps} of "
            "num_epochs. Give at least as many epochs, another out, or resume=False."
        )


def check_mesh(mesh: Any, batch_size: int) -> None:
    """Raise where a batch cannot be spread."""
    if mesh is not None and batch_size % mesh.size:
        raise ValueError(
            f"batch_size={batch_size} cannot be spread over {mesh.size} devices: choose "
            "a multiple of their number."
        )


def check_result(result: Any) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Return the loss and the metrics of an objective, or say what is needed."""
    if not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(
            f"the objective returned {_described(result)}; (loss, metrics) is needed, a "
            "scalar to minimise and a dict of scalars to record: `return loss, {}` "
            "where there is none."
        )
    loss, metrics = result
    if jnp.shape(loss) or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        raise ValueError(
            f"the objective returned {_described(loss)} as its loss; a scalar is needed: "
            "for losses of single examples return loss.mean(), metrics."
        )
    is_dict = isinstance(metrics, Mapping)
    wrong = [n for n in metrics if jnp.shape(metrics[n])] if is_dict else []
    if wrong or not is_dict:
        found = f"{wrong[0]!r} of shape {jnp.shape(metrics[wrong[0]])}" if wrong else ""
        raise ValueError(
            f"the objective returned {found or _described(metrics)} as its metrics; a "
            "dict of names and scalars is needed, such as "
            '{"accuracy": (logits.argmax(-1) == y).mean()}, or {}.'
        )
    return jnp.asarray(loss), metrics


def _described(value: Any) -> str:
    is_array = isinstance(value, jax.Array)
    shape = f" of shape {value.shape}, type {value.dtype}" if is_array else ""
    return f"{'an array' if is_array else 'a ' + type(value).__name__}{shape}"
