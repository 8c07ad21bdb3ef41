"""The output directory of a training run, made to be interrupted."""

import json
import re
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrobust._core import batching, files, processes
from jaxrobust._core.placing import Placing
from jaxrobust._core.program_digest import HostCallError, program_digest
from jaxrobust._core.versions import versions
from jaxrobust.training import interrupts, storage
from jaxrobust.training.checkpoint import Checkpoints, prepare_out, to_json
from jaxrobust.training.running import Run, arrays_of, facts_of, to_run


class RunDirectory:
    """The files of a run: `metrics.jsonl`, `last` and `best`.

    Of several processes all read them, and process 0 alone writes.
    """

    def __init__(
        self,
        out: Checkpoints,
        settings: Mapping[str, Any],
        placing: Placing,
    ):
        """Prepare the directory; `settings` must agree when a run is resumed."""
        assert out.directory is not None
        self.path = path = Path(out.directory).absolute()
        processes.first(lambda: prepare_out(path), f"preparing {path}")
        processes.check_shared(self.path / "last")
        self._placing = placing
        self._resumes = out.resume
        self._metadata = to_json(out.metadata or {})
        nested = {f"metadata[{name!r}]": v for name, v in self._metadata.items()}
        self._settings = {name: describe(value) for name, value in settings.items()}
        self._settings |= nested
        # None: not in this session; what an interrupted one left may be of lost steps.
        self._saved_best_epoch: int | None = None
        # None where a program calls the host and cannot be known.
        self._programs: Mapping[str, str | None] = {}
        self.saved_step: int | None = None

    def begin(self, run: Run, programs: Mapping[str, Any]) -> Run:
        """Return the run to go on with, `run` itself where there is none yet.

        Where nothing is to be resumed, an earlier run is removed.

        Args:
          run: a fresh run.
          programs: name -> a function and its arguments; they must compute the same
              when a run is resumed.
        """
        self._programs = {name: _digest(p) for name, p in programs.items()}
        if self._resumes:
            run = self.restore(run)
        else:
            self.clear()
        self.start(run)
        return run

    def restore(self, run: Run) -> Run:
        """Return the run of `last`, or the given one where there is none yet."""
        last = self.path / "last"
        processes.check_same(storage.info_file(last))
        read = processes.together(lambda: self._read(last, run), f"reading {last}")
        if read is None:
            return run
        saved, arrays = read
        self.saved_step = saved["step"]
        template = _template(run, saved)
        if saved.get("sound"):  # runs of earlier versions have no such entry
            template["sound"] = _template(run, saved["sound"])
        trees = storage.from_arrays(last, template, arrays)
        run = to_run(saved, trees)
        if saved.get("sound"):
            run.sound = to_run(saved["sound"], trees["sound"])
        return run

    def _read(
        self, last: Path, run: Run
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """Return what `last` says of its run, and the arrays; None where it is not."""
        if not storage.exists(last):
            return None
        info = storage.read_info(last)
        saved = info.get("run")
        if saved is None:
            raise ValueError(f"{last} is a model, not a run. Choose another out.")
        self._check_settings(saved["settings"])
        storage.check_architecture(last, "model", *run.state.evaluated)
        environment = info["versions"] | {"platform": saved.get("platform")}
        self._check_programs(saved.get("programs", {}), environment)
        return saved, storage.read_arrays(last, "training")

    def start(self, run: Run) -> None:
        """Write the metrics of the epochs done: those of lost steps go."""
        text = "".join(json.dumps(line) + "\n" for line in run.history)
        metrics = self.path / "metrics.jsonl"

        def write() -> None:
            # What a killed process has left of this very write.
            for left in self.path.glob(f"{metrics.name}.*.tmp"):
                left.unlink(missing_ok=True)
            with files.replaced(metrics) as file:
                file.write(text.encode())

        processes.first(write, f"writing {metrics}")

    def set_back(self, run: Run) -> None:
        """Forget the epochs after the one that the run has been set back to."""
        self._saved_best_epoch = None  # another one may get its number
        self.start(run)

    def clear(self) -> None:
        """Remove an earlier run."""
        for name in ("last", "best"):
            path = self.path / name
            processes.first(partial(storage.remove, path), f"removing {path}")

    def log(self, line: Mapping[str, Any]) -> None:
        """Append an epoch's metrics."""
        metrics = self.path / "metrics.jsonl"

        def append() -> None:
            with metrics.open("a") as file:
                file.write(json.dumps(line) + "\n")

        processes.first(append, f"writing {metrics}")

    def save(self, run: Run) -> None:
        """Write both checkpoints; `last`, being written last, is what counts."""
        sound = run.sound
        with interrupts.uninterrupted():
            if run.best_epoch and self._saved_best_epoch != run.best_epoch:
                self._write("best", run.best, run.history[run.best_epoch - 1])
                self._saved_best_epoch = run.best_epoch
            self._write(
                "last",
                run.evaluated,
                run.history[-1] if run.history else {},
                training=arrays_of(run)
                | ({"sound": arrays_of(sound)} if sound else {}),
                run={
                    "settings": self._settings,
                    "programs": self._programs,
                    "platform": jax.default_backend(),
                    "sound": facts_of(sound) if sound else None,
                    **facts_of(run),
                },
            )
            self.saved_step = run.step

    def _write(self, name, weights, metrics, training=None, **info) -> None:
        to_arrays = partial(storage.to_arrays, fetch=self._placing.fetch)
        items = {"model": to_arrays(weights.params) | to_arrays(weights.rest)}
        if training is not None:
            items["training"] = to_arrays(training)
        metadata = self._metadata | {"metrics": metrics}
        path, info = self.path / name, {"metadata": metadata, **info}
        write = partial(storage.write, path, items, info)
        processes.first(write, f"writing {path}")

    def _check_settings(self, saved: Mapping[str, Any]) -> None:
        names = sorted(saved.keys() | self._settings.keys())
        changed = [
            f"{name} was {saved.get(name)} and is {self._settings.get(name)}"
            for name in names
            if saved.get(name) != self._settings.get(name)
        ]
        if changed:
            raise ValueError(
                f"{self.path} holds a run with other settings: {'; '.join(changed)}. "
                "Choose another output directory (out), or replace that run with "
                "resume=False."
            )

    def _check_programs(
        self, saved: Mapping[str, str | None], environment: Mapping[str, Any]
    ) -> None:
        """Compare what the programs compute, which their texts do not tell.

        The optimiser and the augmentation are parts of the step, and come first.
        """
        advice = "Choose another output directory (out), or use resume=False."
        for name, digest in self._programs.items():
            before = saved.get(name)
            if digest is None or (name in saved and before is None):
                raise ValueError(
                    f"{self.path} cannot be resumed: the {name} calls a function of the "
                    "host (jax.pure_callback, io_callback), and whether it is the same "
                    f"cannot be known; for logging use jax.debug.callback. {advice}"
                )
            if digest != before:
                raise ValueError(
                    f"{self.path} holds a run with another {name}: {_MEANING[name]}."
                    f"{_other_environment(environment)} {advice}"
                )


def _template(run: Run, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays in the structure that the run of these facts has."""
    has_average = facts.get("num_averaged")
    return arrays_of(run) | ({"average": run.best} if has_average else {})


def _digest(program: tuple) -> str | None:
    """Return a digest of a function on its arguments; None where it cannot be known."""
    try:
        return program_digest(*program)
    except HostCallError:
        return None


# What may be different where the digest of a program is.
_MEANING = {
    "optimizer": "the optimiser, its learning rate or a schedule in it is another "
    "(a schedule made for num_epochs changes with it)",
    "augmentation": "`augment` computes something else",
    "training step": "the objective (its attack, threat, loss or a schedule) or the "
    "model computes something else",
    "training step after a collapse": "the objective `then` of the monitor or the model "
    "computes something else",
    "monitor (fast)": "the monitor's fast attack, its threat or the model is another",
    "monitor (strong)": "the monitor's attack, its threat or the model is another",
    "validation": "the validation attack, its threat or the model computes something "
    "else",
}


def _other_environment(saved: Mapping[str, Any]) -> str:
    """Return a sentence where the run was begun with something else installed."""
    here = versions() | {"platform": jax.default_backend()}
    changed = [
        f"{name} was {saved[name]} and is {here[name]}"
        for name in here
        if name in saved and saved[name] != here[name]
    ]
    if not changed:
        return ""
    return (
        f" Or only the program does, as {', '.join(changed)}: then resume with what the "
        "run was begun with."
    )


def describe(value: Any) -> str:
    """Return a text that is equal for equal settings, in another process too.

    Example:
      >>> import jax.numpy as jnp
      >>> describe((jnp.arange(3), None))
      'int32[3] crc32 1d760e7a, None'
    """
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return ", ".join(map(describe, value))
    if batching.is_keys(value):
        return f"key {jax.random.key_data(value).tolist()}"
    if isinstance(value, jax.Array):
        crc = zlib.crc32(np.asarray(value).tobytes())
        return f"{value.dtype}{list(value.shape)} crc32 {crc:x}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
