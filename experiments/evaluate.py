"""Evaluate a checkpoint with AutoAttack or another attack; a killed run resumes.

Command   python -m experiments.evaluate out/robustness_table/PGD/best --eps 0.2

Time      a minute on digits; see experiments/results/ for MNIST

Expected  the report: clean and robust accuracy, what each attack broke, the cost;
          report.json, report.npz, robustbench.json and pictures in --out
"""

import dataclasses
import pathlib
import time
from typing import Any, Literal

import jax
import tyro

import jaxrobust as jr
from experiments import _common

ATTACKS = {
    "autoattack": jr.autoattack(),
    "autoattack-plus": jr.autoattack("plus"),
    "apgd": jr.APGD(),
    "apgd-t": jr.Targets(jr.APGD(loss=jr.losses.dlr_targeted)),
    "fab-t": jr.Targets(jr.FAB(targeted=True)),
    "square": jr.Square(),
    "pgd": jr.Restarts(jr.PGD(num_steps=40), 10),
    "pgd-50": jr.Restarts(jr.PGD(num_steps=40), 50),
    "fgsm": jr.FGSM(),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Evaluate a checkpoint."""

    checkpoint: tyro.conf.Positional[pathlib.Path]
    """Directory that training has written, such as out/robustness_table/PGD/best."""
    eps: _common.Number
    """Radius of the ball, in the units of the data: images are in [0, 1]."""
    threat: Literal["linf", "l2", "l1"] = "linf"
    attack: str = "autoattack"
    """One of autoattack, autoattack-plus, apgd, apgd-t, fab-t, square, pgd (10 restarts),
    pgd-50, fgsm."""
    individually: bool = False
    """Run each attack on all examples, to see what it breaks alone."""
    dataset: str | None = None
    """Default: the one that the model was trained on."""
    data_dir: pathlib.Path | None = None
    """Where tensorflow-datasets keeps its data; default: TFDS_DATA_DIR."""
    num_test: int | None = None
    """Evaluate the first so many test examples only."""
    batch_size: int | None = None
    seed: int = 0
    out: pathlib.Path = pathlib.Path("out/evaluate")
    """Directory of the results and of the state file; a killed run resumes there."""
    save_every: float = 60.0
    """Seconds between two savings of the state."""


def main(config: Config) -> jr.Report:
    """Evaluate; returns the report."""
    model, metadata = jr.training.load_checkpoint(config.checkpoint)
    name = config.dataset or metadata.get("dataset")
    if name is None:
        raise ValueError(
            f"{config.checkpoint} does not say which data set it was trained on: give "
            "--dataset."
        )
    data = jr.data.load(name, data_dir=config.data_dir).subset(None, config.num_test)
    return run(config, jr.models.logits_fn(model), data, str(config.checkpoint))


def run(config: Any, logits_fn: Any, data: Any, name: str) -> jr.Report:
    """Evaluate a model on a test set, print and save the report."""
    if config.attack not in ATTACKS:
        raise ValueError(
            f"--attack {config.attack}: choose one of {', '.join(ATTACKS)}."
        )
    jr.training.prepare_out(config.out)
    provenance = _common.provenance()
    begin = time.monotonic()
    report = jr.evaluate(
        logits_fn,
        data.images(data.x_test),
        data.y_test,
        attack=ATTACKS[config.attack],
        threat=_common.THREATS[config.threat](config.eps),
        key=jax.random.key(config.seed),
        batch_size=config.batch_size,
        individually=config.individually,
        state_file=config.out / "state.npz",
        save_every=config.save_every,
    )
    seconds = round(time.monotonic() - begin, 1)
    print(report)
    print(f"time      {seconds} s in this run")
    report.save(config.out)
    record = report.robustbench(name, dataset=data.name)
    _common.write_json(config.out / "robustbench.json", record)
    result = {
        "experiment": "evaluate",
        "name": name,
        "config": _common.config_of(config),
        "report": report.summary(),
        "seconds": seconds,
        **provenance,
    }
    _common.write_json(config.out / "evaluate.json", result)
    print(f"wrote report.json, report.npz, robustbench.json to {config.out}")
    return report


if __name__ == "__main__":
    with _common.friendly_errors():
        main(tyro.cli(Config, description=__doc__))
