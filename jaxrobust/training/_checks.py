"""Checks of the arguments of `fit`, on the host and before any work."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrobust import training
from jaxrobust._core import checks as _host_checks
from jaxrobust.attacks._base import Attack, as_attack, check_takes_labels


def check_parts(model: Any, objective: Any, optimizer: Any) -> None:
    """Raise where one of the three is something else."""
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"model is a {type(model).__name__}; fit trains modules of flax.nnx. For "
            "another framework write the loop with the objective and optax, see "
            "notebooks/10_your_own_model."
        )
    factories = (getattr(training, name) for name in training.__all__)
    is_factory = any(objective is factory for factory in factories)
    if is_factory or not callable(objective) or isinstance(objective, Attack):
        raise TypeError(
            f"objective={objective!r} is not an objective: pass jr.training.standard() or "
            "jr.training.adversarial(attack, threat)."
        )
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"optimizer={optimizer!r} is not an optimiser of optax: pass one such as "
            "optax.adam(1e-3)."
        )


def check_options(
    num_examples: int,
    num_epochs: int,
    batch_size: int,
    checkpoint_every: int | None,
    ema_decay: float | None,
    attacked_mode: str,
    key: Any,
) -> jax.Array:
    """Check the ranges of the options, and return a typed key."""
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"batch_size is {batch_size}; it must lie between 1 and the number of "
            f"training examples, {num_examples}."
        )
    if num_epochs < 1:
        raise ValueError(f"num_epochs is {num_epochs}; at least 1 is needed.")
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ValueError(
            f"ema_decay is {ema_decay}; it must lie in (0, 1), or be None."
        )
    if attacked_mode not in ("eval", "train"):
        raise ValueError(f'attacked_mode is {attacked_mode!r}; use "eval" or "train".')
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(
            f"checkpoint_every is {checkpoint_every}; give a number of steps, at least "
            "1, or None for one epoch."
        )
    typed = _host_checks.check_key(key)
    if typed is None or typed.shape:
        raise TypeError(f"key={key!r} is not one PRNG key: pass jax.random.key(seed).")
    return typed


def check_steps_per_call(steps: int | None) -> None:
    """Check the number of steps in one call."""
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise ValueError(
            f"steps_per_call is {steps!r}; give a whole number of at least 1, or None."
        )


def check_validation(validation: Any, attack: Any, threat: Any) -> None:
    """Check that an attack comes with examples and a threat."""
    if attack is not None and (validation is None or threat is None):
        raise ValueError(
            "validation_attack needs the examples to attack and what is allowed: give "
            "validation=(x_val, y_val) and threat=..., or no validation_attack."
        )
    if attack is not None:
        check_takes_labels(as_attack(attack), "validation_attack")


def check_steps(done: int, num_steps: int) -> None:
    """Check that a resumed run is not beyond its end."""
    if done > num_steps:
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
