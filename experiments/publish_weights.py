"""Put a trained network among the weights that come with the package.

Command   python -m experiments.publish_weights out/train/mnist_trades mnist_trades

Time      seconds

Out       jaxrobust/models/weights/NAME.npz, the arrays, and NAME.json, the card: then
          `jr.models.load("NAME")` and `print(jr.models.card("NAME"))`

The directory is the --out of `python -m experiments.train RECIPE`, evaluated by AutoAttack.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from typing import Any

import tyro

import jaxrobust as jr
from experiments import _common
from jaxrobust._core import files
from jaxrobust.models import shipped

MOST_BYTES = 2_000_000
WEIGHTS = pathlib.Path(shipped.__file__).parent / "weights"


@dataclasses.dataclass(frozen=True)
class Config:
    """Publish the network that a run of `experiments.train` has evaluated."""

    directory: tyro.conf.Positional[pathlib.Path]
    """The output of that run."""
    name: tyro.conf.Positional[str]
    """What the weights are to be called: small letters, digits, underscores."""
    out: pathlib.Path = WEIGHTS
    """Where the two files go."""


def main(config: Config) -> shipped.Card:
    """Write both files, read them again; returns the card."""
    if not re.fullmatch(r"[a-z0-9_]+", config.name):
        raise ValueError(
            f"{config.name!r}: a name has small letters, digits, underscores."
        )
    result = _result(config.directory)
    path = config.directory / result["config"]["evaluated"]
    model, metadata = jr.training.load_checkpoint(path)
    content = shipped.to_bytes(model)
    if len(content) > MOST_BYTES:
        raise ValueError(
            f"the arrays take {len(content) / 1e6:.1f} MB, the package takes files of "
            f"{MOST_BYTES / 1e6:.0f} MB at most: train a smaller network."
        )
    card = _card(config.name, result, metadata) | {
        "sha256": hashlib.sha256(content).hexdigest()
    }
    jr.training.prepare_out(config.out)
    with files.replaced(config.out / f"{config.name}.npz") as file:
        file.write(content)
    _common.write_json(config.out / f"{config.name}.json", card)
    shipped.load(config.name, _directory=config.out)
    written = shipped.card(config.name, _directory=config.out)
    print(written)
    print(
        f"wrote {config.name}.npz, {len(content) / 1e6:.2f} MB, and {config.name}.json"
    )
    return written


def _result(directory: pathlib.Path) -> dict[str, Any]:
    """Return `result.json` of a run that AutoAttack has evaluated."""
    path = directory / "result.json"
    again = f"run `python -m experiments.train RECIPE --out {directory}` to its end"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: {again}.")
    result = json.loads(path.read_text())
    if "autoattack" not in result.get("reports", {}):
        raise ValueError(
            f"{path} has no report of AutoAttack, without which no weights are published: "
            f"{again}, with --attacks pgd autoattack."
        )
    return result


def _card(
    name: str, result: dict[str, Any], metadata: dict[str, Any]
) -> dict[str, Any]:
    reports = result["reports"]
    accuracy = {"clean": _accuracy(reports["autoattack"], "clean")}
    accuracy |= {attack: _accuracy(reports[attack], "robust") for attack in reports}
    return {
        "name": name,
        "architecture": metadata["model"],
        "data": metadata["dataset"],
        "threat": result["threat"],
        "eps": result["config"]["eps"],
        "accuracy": accuracy,
        "recipe": result["recipe"],
        "objective": result["objective"],
        "epoch": result["config"]["evaluated"],
        "train_seconds": result["train_seconds"],
        **{
            key: result[key]
            for key in ("command", "commit", "date", "processor", "jax")
        },
    }


def _accuracy(report: dict[str, Any], which: str) -> dict[str, Any]:
    return {
        "accuracy": report[f"{which}_accuracy"],
        "interval": report[f"{which}_interval"],
        "num_examples": report["num_examples"],
    }


if __name__ == "__main__":
    with _common.friendly_errors(resumes=False):
        main(_common.parse(Config, "publish_weights", __doc__))
