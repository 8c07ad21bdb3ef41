"""One way to train a model for an experiment: recipe in, checkpointed model out."""

import dataclasses
import json
import pathlib
import time
from typing import Any, Literal

import jax
import numpy as np
import optax
import tyro
from flax import nnx

import jaxrobust as jr
from experiments import _common
from experiments.evaluate import ATTACKS
from jaxrobust.data import Dataset


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a classifier is trained; every value can be set on the command line."""

    model: str = "small_convnet"
    """Name in `jaxrobust.models.NAMES`."""
    model_options: tyro.conf.Suppress[dict[str, Any]] = dataclasses.field(
        default_factory=dict
    )
    """Its width, depth and the like, by the names of its arguments."""
    num_epochs: int = 10
    batch_size: int = 100
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.1
    """The peak of the schedule."""
    schedule: Literal["constant", "step", "onecycle"] = "onecycle"
    """step: divided by 10 after `drop_at` of the run; onecycle: up, then down to 0."""
    drop_at: float = 0.4
    momentum: float = 0.9
    weight_decay: float = 0.0
    augment: bool = False
    """Pad by 4, crop and flip."""
    attacked_mode: Literal["eval", "train"] = "eval"
    """The mode of BatchNorm that the adversary sees in training."""
    ema_decay: float | None = None
    """Decay of an average of the weights, which then is what is evaluated."""
    num_validation: int = 0
    """Training examples held out to choose the best epoch; 0 takes the last."""

    def num_steps(self, num_train: int) -> int:
        """Return the number of optimiser steps of the whole run."""
        return self.num_epochs * ((num_train - self.num_validation) // self.batch_size)

    def make_optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """Return the optimiser with its schedule over `num_steps`."""
        rate = self.learning_rate
        if self.schedule == "step":
            drops = {round(self.drop_at * num_steps): 0.1}
            rate = optax.schedules.piecewise_constant_schedule(rate, drops)
        elif self.schedule == "onecycle":
            rate = optax.schedules.linear_onecycle_schedule(num_steps, rate)
        if self.optimizer == "adam":
            return optax.adamw(rate, weight_decay=self.weight_decay)
        momentum = self.momentum or None
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay),
            optax.sgd(rate, momentum=momentum, nesterov=momentum is not None),
        )


def eps_ramp(share: float, num_steps: int) -> optax.Schedule | None:
    """Return the factor on eps that grows from 0 to 1 in a share of the run."""
    warmup = round(share * num_steps)
    return optax.schedules.linear_schedule(0.0, 1.0, warmup) if warmup else None


def train(*args: Any, **kwargs: Any) -> tuple[nnx.Module, float]:
    """Return the best model of `fit`, and the seconds that training took."""
    result, seconds = fit(*args, **kwargs)
    return result.best, seconds


def fit(
    data: Dataset,
    recipe: Recipe,
    objective: Any,
    *,
    seed: int,
    out: pathlib.Path,
    validation_attack: Any = None,
    threat: Any = None,
    gradient: Any = None,
    resume: bool = True,
) -> tuple[jr.training.FitResult, float]:
    """Train, or load what an earlier run of the same recipe has trained.

    Its best model is the one of the epoch that is best on the validation examples (under
    `validation_attack`, if there is one), or the last where none are held out. Returns the
    seconds that training took, in this call or in earlier ones, too.
    """
    kept, validation = np.arange(len(data.x_train)), None
    if recipe.num_validation:
        kept, held_out = data.split(recipe.num_validation, seed=0)
        validation = jr.training.Validation(
            data.x_train[held_out],
            data.y_train[held_out],
            attack=validation_attack,
            threat=threat if validation_attack else None,
            batch_size=500,
        )
    spec: dict[str, Any] = recipe.model_options | {
        "name": recipe.model,
        "input_shape": list(data.input_shape),
        "num_classes": data.num_classes,
        "seed": seed,
    }
    metadata = {
        "model": spec,
        "dataset": data.name,
        "recipe": dataclasses.asdict(recipe),
        "objective": repr(objective),
    }
    result = jr.training.fit(
        jr.models.create(**spec | {"input_shape": data.input_shape}),
        objective,
        recipe.make_optimizer(recipe.num_steps(len(data.x_train))),
        data.x_train[kept],
        data.y_train[kept],
        num_epochs=recipe.num_epochs,
        batch_size=recipe.batch_size,
        key=jax.random.key(seed),
        validation=validation,
        augment=jr.data.pad_crop_flip if recipe.augment else None,
        scale=data.scale,
        attacked_mode=recipe.attacked_mode,
        ema_decay=recipe.ema_decay,
        out=jr.training.Checkpoints(out, metadata=metadata, resume=resume),
        **({} if gradient is None else {"gradient": gradient}),
    )
    return result, result.history[-1]["seconds"]


def evaluate(
    model: nnx.Module,
    data: Dataset,
    *,
    attack: Any,
    threat: Any,
    seed: int,
    split: Literal["train", "test"] = "test",
    num_examples: int | None = None,
    batch_size: int | None = None,
    stop_early: bool = True,
    progress: bool = True,
    state_file: pathlib.Path | None = None,
) -> jr.Report:
    """Evaluate on the first `num_examples` of a split; all by default."""
    x = getattr(data, f"x_{split}")[:num_examples]
    y = getattr(data, f"y_{split}")[:num_examples]
    return jr.evaluate(
        jr.models.logits_fn(model),
        data.images(x),
        y,
        attack=attack,
        threat=threat,
        key=jax.random.key(seed),
        batch_size=batch_size,
        stop_early=stop_early,
        progress=progress,
        state_file=state_file,
    )


def attacked(
    model: nnx.Module,
    data: Dataset,
    name: str,
    *,
    threat: Any,
    seed: int,
    out: pathlib.Path,
    title: str,
) -> dict[str, Any]:
    """Return the report's summary under a named attack, its seconds and provenance.

    What an earlier call has finished in `out` is read; what was killed goes on.
    """
    directory = out / f"report_{name}"
    summary = directory / "summary.json"
    if not summary.is_file():
        provenance, begin = _common.provenance(), time.monotonic()
        report = evaluate(
            model,
            data,
            attack=ATTACKS[name],
            threat=threat,
            seed=seed,
            state_file=out / f"state_{name}.npz",
        )
        report.save(directory, title=f"{title}, {name}")
        seconds = round(time.monotonic() - begin, 1)
        written = report.summary() | {"seconds": seconds, "provenance": provenance}
        _common.write_json(summary, written)
    return json.loads(summary.read_text())
