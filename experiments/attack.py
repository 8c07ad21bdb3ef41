"""Attack a saved model with any attack and threat, print the report, save the images.

Command   python -m experiments.attack out/robustness_table/digits_0.2/PGD/best --eps 0.2

Time      seconds on digits, minutes on MNIST

Expected  a report; report.json, report.npz and adversarial.png in --out
"""

import dataclasses
import pathlib
from typing import Any, Literal

import jax
import numpy as np
import tyro

import jaxrobust as jr
from experiments import _common, _examples

LOSSES = {
    "cross_entropy": jr.losses.cross_entropy,
    "margin": jr.losses.margin,
    "dlr": jr.losses.dlr,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Attack a checkpoint."""

    checkpoint: tyro.conf.Positional[pathlib.Path]
    """Directory that training has written, such as the --out of an experiment, PGD/best."""
    eps: _common.Number
    """Radius of the ball, in the units of the data: images are in [0, 1]."""
    threat: Literal["linf", "l2", "l1"] = "linf"
    unbounded: bool = False
    """Let the adversary leave [0, 1]."""
    attack: Literal["fgsm", "pgd"] = "pgd"
    num_steps: int = 40
    step_size: float | None = None
    """Step in the units of the data; default: that of `jr.PGD`; for FGSM eps."""
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
    data: pathlib.Path | None = None
    """Own examples instead: an .npz file with x [N, ...], floats, and y [N], integers."""
    data_dir: pathlib.Path | None = None
    """Where tensorflow-datasets keeps its data; default: TFDS_DATA_DIR."""
    num_test: int | None = None
    """Attack the first so many test examples only."""
    batch_size: int | None = None
    seed: int = 0
    out: pathlib.Path = pathlib.Path("out/attack")
    """Directory of the results; those of an earlier attack are replaced."""
    pictures: tyro.conf.OmitArgPrefixes[_common.Pictures] = _common.PICTURES


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
    provenance = _common.provenance()
    attack = build_attack(config)
    model, metadata = jr.training.load_checkpoint(config.checkpoint)
    examples = _examples.of_checkpoint(config, metadata)
    bounds = None if config.unbounded else (0.0, 1.0)
    target = None if config.target is None else np.full_like(examples.y, config.target)
    report = jr.evaluate(
        jr.models.logits_fn(model),
        examples.x,
        examples.y,
        target=target,
        among=None if target is None else examples.y != target,
        attack=attack,
        threat=_common.THREATS[config.threat](config.eps, bounds=bounds),
        key=jax.random.key(config.seed),
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
    title = f"{examples.name}, {_common.short(config.checkpoint)}"
    report.save(config.out, title=title, **config.pictures.options())
    _common.write_json(config.out / "provenance.json", provenance)
    names = ["report.json", "report.npz"]
    names += [path.name for path in _draw(config, examples, report, title)]
    print(f"wrote {', '.join(names)} to {config.out}")
    return report


def _draw(
    config: Config, examples, report: jr.Report, title: str
) -> list[pathlib.Path]:
    from experiments import _pictures

    if not 2 <= examples.x.ndim <= 4 or examples.x.shape[3:] not in ((), (1,), (3,)):
        shape = list(examples.x.shape[1:])
        print(f"no gallery: inputs {shape} are neither images nor signals")
        return []
    return _pictures.gallery(
        {"": report},
        examples.x,
        config.out / "adversarial",
        config.pictures,
        title=f"{title}: clean, perturbation, attacked by "
        f"{report.settings['attack']}, {report.settings['threat']}",
        class_names=examples.class_names,
        num=6,
    )


if __name__ == "__main__":
    with _common.friendly_errors(resumes=False):
        main(_common.parse(Config, "attack", __doc__))
