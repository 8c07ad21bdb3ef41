"""The output directory of a run: whose settings it holds, and beginning again."""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jaxrobust as jr
from experiments import _common
from jaxrobust.training import storage


def claim(
    out: pathlib.Path,
    settings: Mapping[str, Any],
    *,
    restart: bool,
    state_file: pathlib.Path | None = None,
) -> None:
    """Make the output directory this run's, before any work, or refuse to mix two runs.

    Args:
      out: The directory; `config.json` in it says whose it is.
      settings: What decides the results, as JSON values.
      restart: Whether to throw away what an earlier run has left there.
      state_file: For a run that keeps nothing but this file: without it, it is over, and
        another may take its place.

    Raises:
      ValueError: If the directory holds an unfinished run, or checkpoints, of others.
      OSError: If it cannot be written.
    """
    jr.training.prepare_out(out)
    config = out / "config.json"
    if restart:
        _clear(out, state_file)
    elif config.exists() and (state_file is None or state_file.exists()):
        changed = _differences(json.loads(config.read_text()), settings)
        if changed:
            raise ValueError(
                f"{out} holds a run with other settings: {'; '.join(changed)}. Give "
                "another --out, or throw that run away with --restart."
            )
    _common.write_json(config, settings)


def _differences(saved: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Return a text for each setting, also of nested ones, that is not the same."""
    texts = []
    for name in sorted(saved.keys() | given.keys()):
        before, now = saved.get(name), given.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            texts += _differences(before, now)
        elif before != now:
            texts.append(f"{name} was {before} and is {now}")
    return texts


def _clear(out: pathlib.Path, state_file: pathlib.Path | None) -> None:
    """Remove the checkpoints and reports below `out`, and nothing else."""
    if state_file is not None:
        state_file.unlink(missing_ok=True)
        return
    for level in ("", "*/"):
        for name in ("last", "best"):
            for path in sorted(out.glob(level + name)):
                storage.remove(path)
        for report in out.glob(f"{level}report*/report.json"):
            shutil.rmtree(report.parent)
        for state in out.glob(f"{level}state*.npz"):
            state.unlink()
