"""FGSM training on MNIST, l_inf, eps = 0.1: the lecture's first table.

Command   python -m experiments.mnist_fgsm --data-dir DIR

Time      about 65 minutes for 3 seeds on 2 cores (`--dataset digits`: a minute)

Expected  close to the lecture: clean error 1.1% and FGSM error 41.7% after standard
          training, 0.9% and 2.6% after FGSM training. See experiments/results/.

The recipe is that of adversarial-ml-tutorial.org, chapter 4: a ConvNet, SGD at 0.1 for
4 epochs and 0.01 for 6, batches of 100; attacks without a random start and without
clipping to [0, 1], which is why the threat has `bounds=None`.
"""

import dataclasses
import pathlib
import statistics
from typing import Any

import tyro

import jaxrobust as jr
from experiments import _common, _runs, _training

LECTURE = {
    "standard": {"clean": 1.1, "fgsm": 41.7},
    "fgsm": {"clean": 0.9, "fgsm": 2.6},
}
RECIPE = _training.Recipe(
    model="tutorial_convnet",
    num_epochs=10,
    batch_size=100,
    learning_rate=0.1,
    schedule="step",
    drop_at=0.4,
    momentum=0.0,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Train ConvNets on clean and on FGSM examples, and attack both by FGSM."""

    dataset: str = "mnist"
    data_dir: pathlib.Path | None = None
    """Where tensorflow-datasets keeps its data; default: TFDS_DATA_DIR."""
    out: pathlib.Path = pathlib.Path("out/mnist_fgsm")
    """Directory of checkpoints and results; a run that was stopped resumes there."""
    restart: bool = False
    """Throw away what an earlier run has left in --out."""
    num_seeds: int = 3
    eps: _common.Number = 0.1
    num_train: int | None = None
    """Use the first so many training examples only."""
    num_test: int | None = None
    recipe: tyro.conf.OmitArgPrefixes[_training.Recipe] = RECIPE
    pictures: tyro.conf.OmitArgPrefixes[_common.Pictures] = _common.PICTURES


def main(config: Config) -> dict:
    """Run the experiment; returns what is written to `mnist_fgsm.json`."""
    _runs.claim(config.out, _common.config_of(config), restart=config.restart)
    provenance = _common.provenance()
    data = jr.data.load(config.dataset, data_dir=config.data_dir)
    data = data.subset(config.num_train, config.num_test)
    threat = jr.Linf(config.eps, bounds=None)
    objectives = {
        "standard": jr.training.standard(),
        "fgsm": jr.training.adversarial(jr.FGSM(), threat=threat),
    }
    runs: list[dict[str, Any]] = []
    for seed in range(config.num_seeds):
        for name, objective in objectives.items():
            out = config.out / f"{name}-seed{seed}"
            _common.console.print(f"[bold]{name} training[/], seed {seed}")
            run = _run(data, config, objective, threat, seed, out)
            runs.append({"training": name, "seed": seed} | run)
            _common.console.print(
                f"  clean error {run['clean']:.2f}%, FGSM error {run['fgsm']:.2f}%"
            )
    result = {
        "experiment": "mnist_fgsm",
        "lecture": LECTURE,
        "summary": summarise(runs),
        "runs": runs,
        "config": _common.config_of(config),
        "num_train": len(data.x_train),
        "num_test": len(data.x_test),
        "seconds": sum(run["train_seconds"] for run in runs),
        **provenance,
    }
    _common.write_json(config.out / "mnist_fgsm.json", result)
    print_table(result)
    return result


def _run(data, config, objective, threat, seed, out) -> dict[str, float]:
    """Train one model; return its errors in percent and their generalisation gaps."""
    model, seconds = _training.train(data, config.recipe, objective, seed=seed, out=out)
    test, fit = (
        _training.evaluate(
            model,
            data,
            attack=jr.FGSM(),
            threat=threat,
            seed=seed,
            split=split,
            num_examples=len(data.x_test),
        )
        for split in ("test", "train")
    )
    title = f"{data.name}, {out.name}"
    test.save(out / "report", title=title, **config.pictures.options())
    clean, fgsm = (
        100 * (1 - v) for v in (test.clean_accuracy, test.adversarial_accuracy)
    )
    return {
        "clean": clean,
        "fgsm": fgsm,
        "clean_gap": clean - 100 * (1 - fit.clean_accuracy),
        "fgsm_gap": fgsm - 100 * (1 - fit.adversarial_accuracy),
        "train_seconds": seconds,
    }


def summarise(runs: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """Return mean and spread (sample standard deviation) over the seeds."""
    summary: dict = {}
    for name in LECTURE:
        chosen = [run for run in runs if run["training"] == name]
        summary[name] = {}
        for figure in ("clean", "fgsm", "clean_gap", "fgsm_gap"):
            values = [run[figure] for run in chosen]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            summary[name][figure] = {"mean": statistics.fmean(values), "std": spread}
    return summary


def print_table(result: dict) -> None:
    """Print the lecture's table beside the measured one."""
    seeds = result["config"]["num_seeds"]
    title = (
        f"{result['config']['dataset']}, l_inf, eps = {result['config']['eps']}, error in "
        f"% on {result['num_test']:,} test images, mean +- std of {seeds} seeds"
    )
    table = _common.new_table(title)
    for column in ("training", "clean", "lecture", "gap", "FGSM", "lecture", "gap"):
        side = "left" if column == "training" else "right"
        table.add_column(column, justify=side, no_wrap=True)
    for name, figures in result["summary"].items():
        cells = [name]
        for figure in ("clean", "fgsm"):
            value, gap = figures[figure], figures[f"{figure}_gap"]
            cells += [
                f"{value['mean']:.2f} +- {value['std']:.2f}",
                f"{LECTURE[name][figure]:.1f}",
                f"{gap['mean']:+.2f}",
            ]
        table.add_row(*cells)
    _common.console.print(table)
    _common.console.print(
        "gap: test error - training error (on as many training images)"
    )


if __name__ == "__main__":
    with _common.friendly_errors():
        main(_common.parse(Config, "mnist_fgsm", __doc__))
