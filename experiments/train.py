"""Train a model by a recipe, attack it, and say how robust it is; a killed run resumes.

Command   python -m experiments.train digits_trades

Time      and what is expected: in the recipe, experiments/recipes/NAME.py; its values
          are the options: python -m experiments.train mnist_trades --help

Out       out/train/NAME: metrics.jsonl, the checkpoints `last` and `best`, result.json
"""

import dataclasses
import pathlib
import sys
from typing import Annotated, Any, Literal

import tyro

import jaxrobust as jr
from experiments import _common, _runs, _training, recipes
from experiments._recipes import DATASETS
from experiments.evaluate import ATTACKS


@dataclasses.dataclass(frozen=True)
class Config:
    """Train by a recipe and evaluate what is best on held-out examples."""

    name: Annotated[str, tyro.conf.Positional]
    """The recipe, a file of experiments/recipes."""
    data_dir: pathlib.Path | None = None
    """Where tensorflow-datasets keeps its data; default: TFDS_DATA_DIR."""
    out: pathlib.Path | None = None
    """Directory of checkpoints and results; a run that was stopped resumes there.
    Default: out/train/NAME."""
    restart: bool = False
    """Throw away what an earlier run has left in --out."""
    seed: int = 0
    num_train: int | None = None
    """Use the first so many training examples only."""
    num_test: int | None = None
    """Evaluate on the first so many test examples only."""
    attacks: tuple[str, ...] = ("pgd", "autoattack")
    """By which the result is attacked: names as in experiments.evaluate."""
    evaluated: Literal["best", "last"] = "best"
    """The weights of which epoch: the best on held-out examples, or the last."""
    dataset: DATASETS = "digits"
    eps: _common.Number = 0.2
    """Radius of the l_inf ball; inputs are in [0, 1]."""
    recipe: tyro.conf.OmitArgPrefixes[_training.Recipe] = dataclasses.field(
        default_factory=_training.Recipe
    )

    @property
    def directory(self) -> pathlib.Path:
        """Where the results go."""
        return self.out or pathlib.Path("out/train") / self.name


def main(config: Config) -> dict[str, Any]:
    """Train and evaluate; returns what is written to `result.json`."""
    module = recipes.load(config.name)
    _check(config)
    settings = _common.config_of(config)
    del settings["attacks"]  # more of them may come
    _runs.claim(config.directory, settings, restart=config.restart)
    provenance = _common.provenance()
    recipe = config.recipe
    data = jr.data.load(config.dataset, data_dir=config.data_dir)
    data = data.subset(config.num_train, config.num_test)
    threat = jr.Linf(config.eps)
    objective = module.objective(threat, recipe.num_steps(len(data.x_train)))
    result, seconds = _training.fit(
        data,
        recipe,
        objective,
        seed=config.seed,
        out=config.directory,
        validation_attack=jr.PGD(num_steps=10),
        threat=threat,
        gradient=getattr(module, "GRADIENT", None),
    )
    reports = {
        name: _training.attacked(
            getattr(result, config.evaluated),
            data,
            name,
            threat=threat,
            seed=config.seed + 1,
            out=config.directory,
            title=config.name,
        )
        for name in config.attacks
    }
    written = {
        "experiment": "train",
        "recipe": config.name,
        "objective": repr(objective),
        "threat": repr(threat),
        "config": settings,
        "history": result.history,
        "best_epoch": result.best_epoch,
        "train_seconds": seconds,
        "reports": reports,
        "seconds": round(seconds + sum(r["seconds"] for r in reports.values()), 1),
        **provenance,
    }
    _common.write_json(config.directory / "result.json", written)
    _print(written)
    _common.console.print(f"wrote {config.directory / 'result.json'}", soft_wrap=True)
    return written


def _check(config: Config) -> None:
    for name in config.attacks:
        if name not in ATTACKS:
            raise ValueError(
                f"--attacks {name}: choose from {', '.join(ATTACKS)}, or none."
            )


def _print(result: dict[str, Any]) -> None:
    table = _common.new_table(f"{result['recipe']}: accuracy on the test set")
    for column in ("attack", "accuracy", "95% interval", "examples", "seconds"):
        table.add_column(column)
    for name, report in result["reports"].items():
        for row, which in (("none", "clean"), (name, "robust")):
            if row == "none" and name != next(iter(result["reports"])):
                continue
            low, high = report[f"{which}_interval"]
            accuracy = f"{report[f'{which}_accuracy']:.2%}"
            seconds = "" if row == "none" else str(report["seconds"])
            interval = f"{low:.2%} to {high:.2%}"
            table.add_row(row, accuracy, interval, str(report["num_examples"]), seconds)
    _common.console.print(table)
    _common.console.print(f"trained in {result['train_seconds']:.0f} s")


def parse(arguments: list[str] | None = None) -> Config:
    """Read the command line on top of the recipe that it names first."""
    arguments = sys.argv[1:] if arguments is None else arguments
    default: Any = Config(tyro.MISSING)
    text = __doc__ or ""
    if arguments and not arguments[0].startswith("-"):
        module = recipes.load(arguments[0])
        default = Config(
            arguments[0], dataset=module.DATASET, eps=module.EPS, recipe=module.RECIPE
        )
        text = module.__doc__ or ""
    else:
        text += f"\nRecipes   {', '.join(recipes.NAMES)}\n"
    return _common.parse(Config, "train", text, default=default, args=arguments)


if __name__ == "__main__":
    with _common.friendly_errors():
        main(parse())
