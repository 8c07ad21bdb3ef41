"""Which training method is worth its cost: all of them, on one budget of gradients.

Command   python -m experiments.compare_methods                         (digits, embedded)
          python -m experiments.compare_methods --dataset mnist --data-dir DIR
          python -m experiments.compare_methods --dataset cifar10 --data-dir DIR

Time      digits some twenty minutes (not measured yet); mnist and cifar10 take hours, and
          go on where they stopped

Out       out/compare_methods/DATASET: a directory for each method and seed, table.json
          and pareto.png

Expected  standard and FGSM training lose everything to AutoAttack, the others hold
"""

import dataclasses
import pathlib
import statistics
from typing import Any

import tyro

import jaxrobust as jr
from experiments import _common, _methods, _runs, _training
from experiments._recipes import DATASETS, RECIPES


@dataclasses.dataclass(frozen=True)
class Config:
    """Train the same network by every method, attack it, compare."""

    dataset: DATASETS = "digits"
    """Chooses network, optimiser and eps: those of robustness_table."""
    data_dir: pathlib.Path | None = None
    """Where tensorflow-datasets keeps its data; default: TFDS_DATA_DIR."""
    out: pathlib.Path | None = None
    """Default: out/compare_methods/DATASET; what was stopped goes on there."""
    restart: bool = False
    """Throw away what an earlier run has left in --out."""
    methods: tuple[str, ...] = ()
    """Names of methods; all by default."""
    seeds: tuple[int, ...] = (0, 1, 2)
    budget: int = 110
    """Gradients per training example, for each method: it chooses how many epochs fit."""
    train_steps: int = 10
    """PGD steps in training."""
    eps: _common.Number | None = None
    """Default: that of the data set in robustness_table."""
    num_train: int | None = None
    num_test: int | None = 1000
    model: str | None = None
    """Default: that of the data set in robustness_table."""
    attacks: tuple[str, ...] = ("pgd", "autoattack")
    """By which the results are attacked: names as in experiments.evaluate."""
    pictures: tyro.conf.OmitArgPrefixes[_common.Pictures] = _common.PICTURES

    @property
    def directory(self) -> pathlib.Path:
        """Where the results go."""
        return self.out or pathlib.Path("out/compare_methods") / self.dataset


def main(config: Config) -> dict[str, Any]:
    """Train and evaluate what is not there yet; returns what is written."""
    known = _methods.methods(config.train_steps)
    for name in config.methods:
        if name not in known:
            raise ValueError(f"--methods {name!r}: choose from {', '.join(known)}.")
    settings = _common.config_of(config)
    del settings["methods"], settings["seeds"]  # more of them may come
    _runs.claim(config.directory, settings, restart=config.restart)
    provenance = _common.provenance()
    data = jr.data.load(config.dataset, data_dir=config.data_dir)
    data = data.subset(config.num_train, config.num_test)
    chosen = config.methods or tuple(known)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for seed in config.seeds:
        helper = None
        for name in chosen:
            _common.console.print(f"[bold]{name}, seed {seed}[/]")
            helper = helper or _helper(config, data, seed)
            row = _run(config, known[name], name, data, seed, helper)
            rows[name].append(row)
    result = {
        "experiment": "compare_methods",
        "config": _common.config_of(config),
        "rows": {name: _summary(some) for name, some in rows.items()},
        "runs": rows,
        **provenance,
    }
    _common.write_json(config.directory / "table.json", result)
    print_table(result)
    from experiments import _pictures

    for path in _pictures.pareto_chart(
        result, config.directory / "pareto", config.pictures
    ):
        _common.console.print(f"wrote {path}")
    return result


def _helper(config: Config, data: Any, seed: int) -> Any:
    """Return the standard model that HAT and distillation ask for."""
    model = _trained(config, _methods.methods(1)["standard"], "standard", data, seed)
    return jr.models.logits_fn(model[0])


def _trained(
    config: Config, method: Any, name: str, data: Any, seed: int, helper: Any = None
) -> tuple[Any, float, int]:
    """Return the last model, the seconds of its training and its number of epochs."""
    base = RECIPES[config.dataset]
    epochs = max(1, round(config.budget / method.cost(data.num_classes)))
    recipe = dataclasses.replace(
        base.recipe, num_epochs=epochs, num_validation=0, model=_model(config)
    )
    threat = jr.Linf(_eps(config))
    share = base.eps_warmup if method.ramp is None else method.ramp
    schedule = _training.eps_ramp(share, recipe.num_steps(len(data.x_train)))
    result, seconds = _training.fit(
        data,
        recipe,
        method.objective(threat, schedule, helper),
        seed=seed,
        out=_directory(config, name, seed),
        gradient=method.gradient,
    )
    return result.last, seconds, epochs


def _run(
    config: Config, method: Any, name: str, data: Any, seed: int, helper: Any
) -> dict[str, Any]:
    """Train and attack one model."""
    model, seconds, epochs = _trained(config, method, name, data, seed, helper)
    directory = _directory(config, name, seed)
    reports = {
        attack: _training.attacked(
            model,
            data,
            attack,
            threat=jr.Linf(_eps(config)),
            seed=seed + 1,
            out=directory,
            title=f"{name}, seed {seed}",
        )
        for attack in config.attacks
    }
    accuracies: dict[str, float] = {}
    for attack, report in reports.items():
        accuracies["clean"] = report["clean_accuracy"]
        accuracies[attack] = report["robust_accuracy"]
    return {
        "seed": seed,
        "num_epochs": epochs,
        "gradients_per_example": epochs * method.cost(data.num_classes),
        "train_seconds": seconds,
        "test_seconds": sum(report["seconds"] for report in reports.values()),
        "accuracies": accuracies,
    }


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation over the seeds."""
    return {
        "num_epochs": runs[0]["num_epochs"],
        "train_seconds": statistics.fmean(run["train_seconds"] for run in runs),
        "accuracies": {
            name: {
                "mean": statistics.fmean(run["accuracies"][name] for run in runs),
                "std": statistics.stdev(run["accuracies"][name] for run in runs)
                if len(runs) > 1
                else None,
            }
            for name in runs[0]["accuracies"]
        },
    }


def print_table(result: dict[str, Any]) -> None:
    """Print a row for each method: epochs, seconds, mean and spread of each accuracy."""
    rows = result["rows"]
    names = next(iter(rows.values()))["accuracies"]
    num = len(result["config"]["seeds"])
    table = _common.new_table(f"accuracy in %, mean and spread of {num} seeds")
    for column in ("training", "epochs", "seconds", *names):
        table.add_column(column)
    for method, row in rows.items():
        cells = [_cell(row["accuracies"][name]) for name in names]
        table.add_row(
            method, str(row["num_epochs"]), f"{row['train_seconds']:.0f}", *cells
        )
    _common.console.print(table)


def _cell(figure: dict[str, Any]) -> str:
    spread = "" if figure["std"] is None else f" ± {100 * figure['std']:.1f}"
    return f"{100 * figure['mean']:.1f}{spread}"


def _directory(config: Config, name: str, seed: int) -> pathlib.Path:
    return config.directory / f"{name}_{seed}".replace(" ", "_")


def _eps(config: Config) -> float:
    return RECIPES[config.dataset].eps if config.eps is None else config.eps


def _model(config: Config) -> str:
    return config.model or RECIPES[config.dataset].recipe.model


if __name__ == "__main__":
    with _common.friendly_errors():
        main(_common.parse(Config, "compare_methods", __doc__))
