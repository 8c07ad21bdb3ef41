"""The lecture's table: standard, FGSM and PGD training under no, FGSM and PGD attack.

Command   python -m experiments.robustness_table                    (digits)
          python -m experiments.robustness_table --dataset mnist --data-dir DIR
          python -m experiments.robustness_table --dataset cifar10 --data-dir DIR
          python -m experiments.robustness_table --dataset cifar10 --model small ...

Time      digits 1 to 2 minutes, mnist 10 to 40 minutes, cifar10 with the small model some
          hours (not measured yet) on 2 cores; cifar10 with its PreActResNet-18 needs a GPU

Out       out/robustness_table/digits_0.2: of each data set and eps its own, with the models
          in standard/best, FGSM/best and PGD/best

Expected  the pattern of Madry et al. 2018: standard training falls to PGD, FGSM training
          looks best under FGSM and falls to PGD, PGD training holds. The four statements
          of the lecture are checked and printed as confirmed or not by this run.
"""

import functools
import time
from typing import Any

import jaxrobust as jr
from experiments import _common, _runs, _training, table
from experiments._recipes import RECIPES, Config


def main(config: Config) -> dict[str, Any]:
    """Run the experiment; returns what is written to `table.json`."""
    _runs.claim(config.directory, _common.config_of(config), restart=config.restart)
    provenance = _common.provenance()
    data = jr.data.load(config.dataset, data_dir=config.data_dir)
    data = data.subset(config.num_train, config.num_test)
    threat = jr.Linf(config.eps)
    attacks = {
        "FGSM": jr.FGSM(),
        "PGD": jr.Restarts(config.attack, config.test_restarts),
    }
    columns, pictured = {}, {}
    num_steps = config.recipe.num_steps(len(data.x_train))
    objectives = _objectives(config, threat, num_steps)
    for training, (objective, validation_attack) in objectives.items():
        _common.console.print(f"[bold]{training} training[/]")
        model, train_seconds = _training.train(
            data,
            config.recipe,
            objective,
            seed=config.seed,
            out=config.directory / training,
            validation_attack=validation_attack,
            threat=threat,
        )
        begin = time.monotonic()
        reports = _reports(config, model, data, attacks, threat, training)
        pictured[f"{training}\ntraining"] = _pictured(
            config, model, data, attacks, threat
        )
        columns[training] = table.column(reports) | {
            "gaps": _gaps(config, model, data, threat),
            "train_seconds": train_seconds,
            "test_seconds": round(time.monotonic() - begin, 1),
        }
        table.print_column(training, columns[training])
    result = {
        "experiment": "robustness_table",
        "table": columns,
        "statements": table.check_statements(columns),
        "config": _common.config_of(config),
        "attacks": {name: repr(a) for name, a in attacks.items()},
        "threat": repr(threat),
        "num_test": len(data.x_test),
        "seconds": sum(
            c["train_seconds"] + c["test_seconds"] for c in columns.values()
        ),
        **provenance,
    }
    _common.write_json(config.directory / "table.json", result)
    table.print_result(result)
    _draw(config, data, result, pictured)
    return result


def _objectives(config: Config, threat: jr.Linf, num_steps: int) -> dict[str, Any]:
    """Return, for each training, its objective and the attack that chooses its epoch."""
    pgd = jr.PGD(
        num_steps=config.train_steps,
        rel_step_size=config.train_rel_step_size,
        keep_best=False,
    )
    adversarial = functools.partial(jr.training.adversarial, threat=threat)
    fgsm_schedule, pgd_schedule = (
        _training.eps_ramp(share, num_steps)
        for share in (config.fgsm_eps_warmup, config.eps_warmup)
    )
    return {
        "standard": (jr.training.standard(), None),
        "FGSM": (
            adversarial(jr.FGSM(), eps_schedule=fgsm_schedule),
            jr.FGSM(),
        ),
        "PGD": (adversarial(pgd, eps_schedule=pgd_schedule), pgd),
    }


def _reports(
    config: Config, model, data, attacks, threat, training: str
) -> dict[str, jr.Report]:
    """Evaluate under every attack, and save the reports when all are there."""
    reports = {
        name: _training.evaluate(
            model,
            data,
            attack=attack,
            threat=threat,
            seed=config.seed + 1,
            batch_size=config.batch_size_test,
        )
        for name, attack in attacks.items()
    }
    for name, report in reports.items():
        report.save(
            config.directory / training / f"report_{name}",
            title=f"{data.name}, {training} training",
            **config.pictures.options(),
        )
    return reports


def _pictured(config: Config, model, data, attacks, threat) -> jr.Report:
    """Attack the images of the picture to the end, not only until they are broken."""
    from experiments import _pictures

    return _training.evaluate(
        model,
        data,
        attack=attacks["PGD"],
        threat=threat,
        seed=config.seed + 1,
        num_examples=1 + max(_pictures.chosen(data.y_test)),
        stop_early=False,
        progress=False,
    )


def _gaps(config: Config, model, data, threat) -> dict[str, float]:
    """Return test error - training error, clean and under PGD without restarts.

    The same attack on both splits; on the test set, the first `num_gap` examples.
    """
    options = dict(
        attack=config.attack, threat=threat, seed=config.seed + 2, progress=False
    )
    train, test = (
        _training.evaluate(
            model,
            data,
            split=split,
            num_examples=min(config.num_gap, len(data.x_test)),
            **options,
        )
        for split in ("train", "test")
    )
    return {
        "clean_train_error": 1 - train.clean_accuracy,
        "clean_gap": train.clean_accuracy - test.clean_accuracy,
        "pgd_train_error": 1 - train.robust_accuracy,
        "pgd_gap": train.robust_accuracy - test.robust_accuracy,
    }


def _draw(config: Config, data, result, pictured) -> None:
    from experiments import _pictures

    out = config.directory
    charts = _pictures.table_chart(result, out / "table", config.pictures)
    examples = _pictures.gallery(
        pictured,
        data.images(data.x_test),
        out / "examples",
        config.pictures,
        title=f"{data.name}: clean image, perturbation, image under PGD, eps = "
        f"{_common.text_of(config.eps)}; predicted class, confidence, wrong ones in orange",
        class_names=data.class_names,
    )
    for path in (out / "table.json", *charts, *examples):
        _common.console.print(f"wrote {path}")
    best = out / "PGD" / "best"
    _common.console.print(
        f"saved models such as {best}: python -m experiments.attack {best} --eps "
        f"{_common.text_of(config.eps)}",
        soft_wrap=True,  # to be copied
    )


def parse(arguments: list[str] | None = None) -> Config:
    """Read the command line on top of the recipe of its --dataset and --model."""
    import argparse
    import sys

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--dataset", default="digits")
    chooser.add_argument("--model")
    chosen, _ = chooser.parse_known_args(arguments)
    default = RECIPES.get(chosen.dataset, RECIPES["digits"])
    if chosen.model == "small":  # not a network, but one for two processor cores
        default = RECIPES.get(f"{chosen.dataset} small", default)
        i = next(i for i, word in enumerate(arguments) if word.startswith("--model"))
        arguments[i : i + 1 + (arguments[i] == "--model")] = []
    options = {"default": default, "args": arguments}
    return _common.parse(Config, "robustness_table", __doc__, **options)


if __name__ == "__main__":
    with _common.friendly_errors():
        main(parse())
