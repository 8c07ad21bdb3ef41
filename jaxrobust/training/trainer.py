"""A model, an objective and data, checked and ready for the first step."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrobust._core.placing import Placing
from jaxrobust.training import _checks, _data_checks
from jaxrobust.training.averages import EMA, SWA
from jaxrobust.training.batches import Batches
from jaxrobust.training.collapse import Watch
from jaxrobust.training.feed import Arrays
from jaxrobust.training.monitor import Monitor
from jaxrobust.training.objectives import as_objective, threats_of
from jaxrobust.training.running import Run
from jaxrobust.training.statistics import Averaging
from jaxrobust.training.step import (
    TrainState,
    Weights,
    copy_tree,
    logits_fn,
    make_train_step,
    merge_eval,
    split_model,
    to_unit,
)
from jaxrobust.training.updates import optimizer_program
from jaxrobust.training.validation import NOTHING, Scores, Validation
from jaxrobust.types import Gradient


class Trainer:
    """What `fit` trains, after all checks that need no compilation.

    Attributes:
      objectives: the objective, and the one after a collapse where there is one.
      options: of the step, as `make_train_step` takes them.
      settings: what must be the same when a run is resumed; replicated data hold the same.
      placing: where the batches live.
      feed: where they come from.
      key: the key that was given, typed; `step_key` is that of the steps.
    """

    def __init__(
        self,
        model: Any,
        objective: Any,
        optimizer: optax.GradientTransformation,
        data: tuple[Any, Any],
        *,
        batch_size: int | None,
        key: Any,
        gradient: Gradient,
        validation: Validation = NOTHING,
        monitor: Monitor | None = None,
        average: EMA | SWA | None,
        augment: Callable | None,
        scale: float | None,
        attacked_mode: str,
        mesh: jax.sharding.Mesh | None,
    ):
        """Check everything; the arguments are those of `fit`, in their long forms."""
        _checks.check_parts(model, objective, optimizer)
        _checks.check_is_monitor(monitor)
        self.placing = Placing(mesh)
        batches = Batches(data[0], self.placing) if data[1] is None else None
        if batches:
            _checks.check_batch_size(batch_size, len(batches.first[0]))
            data, batch_size = batches.first, len(batches.first[0])
        given = None if validation.x is None else (validation.x, validation.y)
        x, y, held_out = _data_checks.check_data(*data, given)
        batch_size = _checks.check_options(len(x), batch_size, attacked_mode)
        self.key = _checks.check_one_key(key)
        _checks.check_mesh(mesh, batch_size)
        scale = _data_checks.to_scale(x, scale)
        self.options: dict[str, Any] = dict(
            gradient=gradient,
            batch_size=batch_size,
            scale=scale,
            augment=augment,
            attacked_mode=attacked_mode,
            ema_decay=average.decay if isinstance(average, EMA) else None,
        )
        then = monitor.then if monitor else None
        self.objectives = [as_objective(o) for o in (objective, then) if o is not None]
        self.optimizer = optimizer
        self._augment = jax.jit(augment) if augment is not None else None
        self._views, self._weights = split_model(model)
        num_classes = _data_checks.check_all(
            logits_fn(self._views.eval, self._weights),
            (x, y),
            held_out,
            threats=(threats_of(self.objectives), validation.threat),
            batch_size=batch_size,
            scale=scale,
            augment=augment,
        )
        self.settings = dict(
            key=self.key,
            data=(x, y) if batches is None else batches.kind,
            objective=objective,
            validation=held_out,
            validation_attack=validation.attack,
            threat=validation.threat,
        ) | {name: v for name, v in self.options.items() if name != "gradient"}
        self.settings |= dict(monitor=monitor) if monitor else {}
        self._validation, self._monitor, self._average = validation, monitor, average
        self._held_out, keys = self.placing.replicate(
            (held_out, tuple(jax.random.split(self.key, 3)))
        )
        order_key, self.step_key, self._scoring_key = keys
        if batches:
            self.feed: Arrays | Batches = batches
            batches.num_classes = num_classes
        else:
            x, y = self.placing.replicate((x, y))
            self.feed = Arrays(x, y, batch_size, order_key)

    @property
    def most_steps(self) -> int:
        """The most steps that one call can take."""
        return self.feed.steps_per_epoch if isinstance(self.feed, Arrays) else 1

    @property
    def _scoring(self) -> dict[str, Any]:
        """Return what `Scores` of this data take."""
        batch_size = self._validation.batch_size or self.options["batch_size"]
        return dict(batch_size=batch_size, scale=self.options["scale"])

    def scores(self) -> Scores | None:
        """Return what validates; None where there is nothing to validate on."""
        if self._held_out is None:
            return None
        return Scores(
            self._views,
            self._held_out,
            attack=self._validation.attack,
            threat=self._validation.threat,
            key=self._scoring_key,
            **self._scoring,
        )

    def watch(self) -> Watch | None:
        """Return what watches the training, if something does."""
        data, monitor = self._held_out, self._monitor
        if monitor is None:
            return None
        if data is None:
            if isinstance(self.feed, Batches):
                raise ValueError(
                    "the monitor looks at the same examples again and again: give "
                    "validation=(x_val, y_val) beside the batches."
                )
            data = self.feed.x, self.feed.y
        threat = _checks.check_monitor(monitor, self.objectives[0].threat)
        known, shape = _data_checks.known(threat), data[0].shape[1:]
        _data_checks.check_threat_shapes("the monitor's threat", known, shape)
        return Watch(
            monitor,
            self._views,
            data,
            threat=threat,
            # A fourth key besides those of order, steps and scores.
            key=self.placing.replicate(jax.random.fold_in(self.key, 3)),
            **self._scoring,
        )

    def averaging(self, num_epochs: int) -> Averaging | None:
        """Return what averages the weights at the ends of epochs, if something does."""
        if not isinstance(self._average, SWA):
            return None
        _checks.check_arrays(self.feed, self._average)
        return Averaging(self._average, num_epochs, self)

    def first_run(self) -> Run:
        """Return a run before its first step."""
        weights = self._weights
        has_average = self.options["ema_decay"] is not None
        state = TrainState(
            step=jnp.int32(0),
            weights=weights,
            # A copy, as some optimisers keep the parameters themselves in their state.
            opt_state=copy_tree(self.optimizer.init(weights.params)),
            ema=copy_tree(weights) if has_average else None,
        )
        state, best = self.placing.replicate((state, copy_tree(weights)))
        return Run(state, best=best)

    def train_steps(self) -> list[Callable]:
        """Return the step of each objective."""
        make: dict[str, Any] = dict(placing=self.placing, **self.options)
        return [
            make_train_step(self._views, o, self.optimizer, **make)
            for o in self.objectives
        ]

    def step_inputs(self, run: Run) -> tuple[Any, ...]:
        """Return what a step is traced with."""
        return (run.state, *self.feed.at(0, 0), self.step_key)

    def programs(self, steps: list[Callable], run: Run) -> dict[str, tuple]:
        """Return functions and arguments of what must be the same in a resumed run."""
        inputs, augment = self.step_inputs(run), self.options["augment"]
        programs: dict[str, tuple] = {
            "optimizer": (optimizer_program(self.optimizer), self._weights.params)
        }
        if augment is not None:
            x = inputs[1][: self.options["batch_size"]]
            programs["augmentation"] = (augment, self.step_key, x)
        names = ["training step", "training step after a collapse"]
        for name, step in zip(names, steps, strict=False):
            programs[name] = (step, *inputs)
        return programs

    def clean_batches(self, epoch: int) -> Iterator[jax.Array]:
        """Yield the inputs of an epoch as the model sees them where nobody attacks."""
        assert isinstance(self.feed, Arrays)
        x, _, order = self.feed.at(epoch, 0)
        size = self.options["batch_size"]
        # A fifth key besides those of order, steps, scores and monitor.
        key = self.placing.replicate(jax.random.fold_in(self.key, 4))
        key = jax.random.fold_in(key, epoch)
        for i in range(self.feed.steps_per_epoch):
            batch = x[order[i * size : (i + 1) * size]]
            if self._augment is not None:
                batch = self._augment(jax.random.fold_in(key, i), batch)
            yield to_unit(batch, self.options["scale"])

    def model(self, weights: Weights) -> Any:
        """Return a module with these weights, in evaluation mode."""
        return merge_eval(self._views, weights)
