"""Attack a saved model with any attack and threat, print the report, save the images.

Command   python -m experiments.attack out/robustness_table/PGD/best --eps 0.2

Time      seconds on digits, minutes on MNIST

Expected  a report; report.json, report.npz and adversarial.png in --out
"""

import dataclasses
import pathlib
from typing import Any, Literal

import numpy as np
import tyro

import jaxrobust as jr
from experiments import _common, _training

LOSSES = {
    "cross_entropy": jr.losses.cross_entropy,
    "margin": jr.losses.margin,
    "dlr": jr.losses.dlr,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Attack a checkpoint."""

    checkpoint: tyro.conf.Positional[pathlib.Path]
    """Directory that training has written, such as out/robustness_table/PGD/best."""
    eps: _common.Number
    """Radius of the ball, in the units of the data: images are in [0, 1]."""
    threat: Literal["linf", "l2", "l1"] = "linf"
    unbounded: bool = False
    """Let the adversary leave [0, 1]."""
    attack: Literal["fgsm", "pgd"] = "pgd"
    num_steps: int = 40
    step_size: float | None = None
    """Step in the units of the data; default: 2.5 eps / num_steps, for FGSM eps."""
    rel_step_size: float | None = None
    """Step in units of eps; at most one of the two."""
    num_restarts: int = 1
    random_start: bool | None = None
    """Default: yes for PGD, no for FGSM."""
    momentum: float | None = None
    """Decay of MI-FGSM; default: no momentum."""
    loss: Literal["cross_entropy", "margin", "dlr"] = "cross_entropy"
    target: int | None = None
    """Make every image this class; default: any wrong class."""
    dataset: str | None = None
    """Default: the one that the model was trained on."""
    data_dir: pathlib.Path | None = None
    """Where tensorflow-datasets keeps its data; default: TFDS_DATA_DIR."""
    num_test: int | None = None
    """Attack the first so many test examples only."""
    batch_size: int | None = None
    seed: int = 0
    out: pathlib.Path = pathlib.Path("out/attack")


def build_attack(config: Config) -> Any:
    """Return the attack that the command line describes."""
    loss = LOSSES[config.loss]
    is_fgsm = config.attack == "fgsm"
    random_start = config.random_start
    options: dict[str, Any] = {
        "step_size": config.step_size,
        "rel_step_size": config.rel_step_size,
        "loss": loss if config.target is None else jr.losses.targeted(loss),
        "random_start": (not is_fgsm) if random_start is None else random_start,
    }
    if is_fgsm and config.momentum is not None:
        raise ValueError("--momentum needs more than one step: use --attack pgd.")
    if is_fgsm:
        attack = jr.FGSM(**options)
    else:
        attack = jr.PGD(num_steps=config.num_steps, momentum=config.momentum, **options)
    if config.num_restarts == 1:
        return attack
    return jr.Restarts(attack, config.num_restarts)


def main(config: Config) -> jr.Report:
    """Run the attack; returns the report."""
    jr.training.prepare_out(config.out)
    attack = build_attack(config)
    model, metadata = jr.training.load_checkpoint(config.checkpoint)
    name = config.dataset or metadata.get("dataset")
    if name is None:
        raise ValueError(
            f"{config.checkpoint} does not say which data set it was trained on: give "
            "--dataset."
        )
    data = jr.data.load(name, data_dir=config.data_dir).subset(None, config.num_test)
    bounds = None if config.unbounded else (0.0, 1.0)
    report = _training.evaluate(
        model,
        data,
        attack=attack,
        threat=_common.THREATS[config.threat](config.eps, bounds=bounds),
        seed=config.seed,
        target=config.target,
        batch_size=config.batch_size,
    )
    print(report)
    if config.target is not None:
        others = report.is_correct & (report.y != config.target)
        reached = float(np.mean(report.predicted_adv[others] == config.target))
        print(
            f"target    class {config.target} reached for {100 * reached:.2f}% of the "
            "correct examples of other classes"
        )
    report.save(config.out)
    _common.write_json(config.out / "provenance.json", _common.provenance())
    _draw(data, report, config.out / "adversarial.png")
    print(f"wrote report.json, report.npz, adversarial.png to {config.out}")
    return report


def _draw(data, report: jr.Report, path: pathlib.Path) -> None:
    from experiments import _pictures

    _pictures.gallery(data, {"": report}, path, title="clean, perturbation, attacked")


if __name__ == "__main__":
    with _common.friendly_errors():
        main(tyro.cli(Config, description=__doc__))
