"""Evaluate a checkpoint with AutoAttack or another attack; a killed run resumes.

Command   python -m experiments.evaluate out/robustness_table/digits_0.2/PGD/best --eps 0.2

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
from experiments import _common, _examples, _runs

ATTACKS = {
    "autoattack": jr.autoattack(),
    "autoattack-plus": jr.autoattack("plus"),
    "autoattack-fast": jr.autoattack("fast"),
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
    """Directory that training has written, such as the --out of an experiment, PGD/best."""
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
    data: pathlib.Path | None = None
    """Own examples instead: an .npz file with x [N, ...], floats, and y [N], integers."""
    unbounded: bool = False
    """Let the adversary leave [0, 1]."""
    data_dir: pathlib.Path | None = None
    """Where tensorflow-datasets keeps its data; default: TFDS_DATA_DIR."""
    num_test: int | None = None
    """Evaluate the first so many test examples only."""
    batch_size: int | None = None
    seed: int = 0
    out: pathlib.Path = pathlib.Path("out/evaluate")
    """Directory of the results and of the state file; a killed run resumes there."""
    restart: bool = False
    """Throw away what a killed run has left in --out."""
    save_every: float = 60.0
    """Seconds between two savings of the state."""
    max_seconds: float | None = None
    """Stop after so many seconds with an upper bound; the same command goes on."""
    pictures: tyro.conf.OmitArgPrefixes[_common.Pictures] = _common.PICTURES


def main(config: Config) -> jr.Report:
    """Evaluate; returns the report."""
    jr.training.prepare_out(config.out)
    model, metadata = jr.training.load_checkpoint(config.checkpoint)
    examples = _examples.of_checkpoint(config, metadata)
    bounds = None if config.unbounded else (0.0, 1.0)
    threat = _common.THREATS[config.threat](config.eps, bounds=bounds)
    name = str(config.checkpoint)
    return run(config, jr.models.logits_fn(model), examples, threat, name)


def run(
    config: Any, logits_fn: Any, examples: Any, threat: Any, name: str
) -> jr.Report:
    """Evaluate a model on examples, print and save the report."""
    if config.attack not in ATTACKS:
        raise ValueError(
            f"--attack {config.attack}: choose one of {', '.join(ATTACKS)}."
        )
    state_file = config.out / "state.npz"
    settings = _common.config_of(config) | {"model": name, "data": examples.name}
    for option in ("save_every", "max_seconds"):  # may change between two sessions
        del settings[option]
    _runs.claim(config.out, settings, restart=config.restart, state_file=state_file)
    provenance = _common.provenance()
    attack = ATTACKS[config.attack]
    _say_cost(attack, threat, logits_fn, examples)
    begin = time.monotonic()
    report = jr.evaluate(
        logits_fn,
        examples.x,
        examples.y,
        attack=attack,
        threat=threat,
        key=jax.random.key(config.seed),
        batch_size=config.batch_size,
        individually=config.individually,
        state_file=state_file,
        save_every=config.save_every,
        max_seconds=config.max_seconds,
    )
    seconds = round(time.monotonic() - begin, 1)
    print(report)
    print(f"time      {seconds} s in this run")
    title = f"{examples.name}, {_common.short(name)}"
    report.save(config.out, title=title, **config.pictures.options())
    record = config.out / "robustbench.json"
    record.unlink(missing_ok=True)
    if report.is_finished:
        _common.write_json(record, report.robustbench(name, dataset=examples.name))
    result = {
        "experiment": "evaluate",
        "name": name,
        "config": _common.config_of(config),
        "report": report.summary(),
        "seconds": seconds,
        **provenance,
    }
    _common.write_json(config.out / "evaluate.json", result)
    also = ", robustbench.json" if report.is_finished else ""
    print(f"wrote report.json, report.npz{also} to {config.out}")
    return report


def _say_cost(attack: Any, threat: Any, logits_fn: Any, examples: Any) -> None:
    """Print what the evaluation takes if nothing breaks."""
    num_classes = jax.eval_shape(logits_fn, examples.x[:1]).shape[-1]
    counts = {"num_examples": len(examples.x), "num_classes": num_classes}
    cost = jr.evaluation.estimate(attack, threat=threat, **counts)
    if cost is not None:
        text = f"{cost.gradients:,} gradients and {cost.forwards:,} forwards"
        print(f"at most   {text}, if nothing breaks", flush=True)


if __name__ == "__main__":
    with _common.friendly_errors():
        main(_common.parse(Config, "evaluate", __doc__))
