"""The robustness table: its figures, its statements, its print."""

from typing import Any

import jaxrobust as jr
from experiments._common import console, new_table, text_of

ROWS = ("natural", "FGSM", "PGD")
COLUMNS = ("standard", "FGSM", "PGD")
# Madry et al. 2018 as the lecture shows it: CIFAR-10, l_inf 8/255, wide ResNet.
LECTURE = {
    "standard": {"natural": 95.2, "FGSM": 32.7, "PGD": 3.5},
    "FGSM": {"natural": 90.3, "FGSM": 95.1, "PGD": 0.0},
    "PGD": {"natural": 87.3, "FGSM": 56.1, "PGD": 45.8},
}


# What a failed part usually means; printed as a reading, not as a finding.
WHY_NOT = {
    "FGSM training looks best": "label leaking and collapse need a model that learns to "
    "recognise the images of FGSM; this one did not get there on this data",
    "Natural accuracy falls": "on easy data there is little accuracy to give up, and "
    "training on attacked images regularises",
}


def column(reports: dict[str, jr.Report]) -> dict[str, Any]:
    """Return accuracy and 95% interval of each row, for one trained model.

    Accuracy under attack is that on the attacked images, as in the paper; label leaking
    (better on FGSM images than on natural ones) is visible in no other.
    """
    natural = next(iter(reports.values()))
    hits = {"natural": natural.is_correct}
    hits |= {name: report.predicted_adv == report.y for name, report in reports.items()}
    cells = {}
    for row, is_hit in hits.items():
        low, high = jr.evaluation.wilson(int(is_hit.sum()), len(is_hit))
        cells[row] = {"accuracy": float(is_hit.mean()), "low": low, "high": high}
    return {"cells": cells}


def check_statements(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lecture's four statements, each with whether this run confirms it.

    A part is confirmed where its two accuracies are in the claimed order, and clear where
    their 95% intervals are apart as well.
    """

    def cell(training: str, row: str) -> dict[str, float]:
        return columns[training]["cells"][row]

    def above(a: tuple[str, str], b: tuple[str, str]) -> dict[str, Any]:
        higher, lower = cell(*a), cell(*b)
        return {
            "claim": f"{_name(*a)} above {_name(*b)}",
            "figures": [higher["accuracy"], lower["accuracy"]],
            "is_confirmed": higher["accuracy"] > lower["accuracy"],
            "is_clear": higher["low"] > lower["high"],
        }

    chance = 0.1  # ten classes in every data set here
    worthless = {
        "claim": f"{_name('FGSM', 'PGD')} at or below chance (10%)",
        "figures": [cell("FGSM", "PGD")["accuracy"], chance],
        "is_confirmed": cell("FGSM", "PGD")["accuracy"] <= chance,
        "is_clear": cell("FGSM", "PGD")["high"] <= chance,
    }
    statements = {
        "PGD is the stronger attack": [above((t, "FGSM"), (t, "PGD")) for t in COLUMNS],
        "PGD training gives robustness to FGSM too": [
            above(("PGD", "FGSM"), ("standard", "FGSM"))
        ],
        "FGSM training looks best under FGSM, better than on natural images (label "
        "leaking), and is worth nothing under PGD": [
            above(("FGSM", "FGSM"), ("PGD", "FGSM")),
            above(("FGSM", "FGSM"), ("FGSM", "natural")),
            worthless,
        ],
        "Natural accuracy falls with adversarial training": [
            above(("standard", "natural"), (t, "natural")) for t in ("FGSM", "PGD")
        ],
    }
    return [
        {
            "statement": text,
            "is_confirmed": all(part["is_confirmed"] for part in parts),
            "parts": parts,
        }
        for text, parts in statements.items()
    ]


def print_column(training: str, figures: dict[str, Any]) -> None:
    """Print one model's accuracies as soon as they are known."""
    cells = figures["cells"]
    line = ", ".join(f"{row} {100 * cells[row]['accuracy']:.2f}%" for row in ROWS)
    console.print(f"  {training}-trained: {line}")


def print_result(result: dict[str, Any]) -> None:
    """Print the table, the generalisation gaps and the statements."""
    config = result["config"]
    table = new_table(
        f"{config['dataset']}, l_inf, eps = {text_of(config['eps'])}: accuracy in % on "
        f"{result['num_test']:,} test images [95% interval]"
    )
    table.add_column("evaluation", no_wrap=True)
    for training in COLUMNS:
        table.add_column(f"{training} training", justify="right", no_wrap=True)
    for row in ROWS:
        cells = (result["table"][training]["cells"][row] for training in COLUMNS)
        table.add_row(row, *map(_format, cells))
    table.add_section()
    for label, name in (("clean", "clean"), ("PGD", "pgd")):
        gaps = (result["table"][training]["gaps"] for training in COLUMNS)
        table.add_row(
            f"{label} error",
            *(
                f"{100 * g[f'{name}_train_error']:.1f} {100 * g[f'{name}_gap']:+.1f}"
                for g in gaps
            ),
        )
    console.print(table)
    console.print("error: on training images, + what it is more on test images")
    console.print(f"PGD: {result['attacks']['PGD']}", highlight=False)
    for statement in result["statements"]:
        _print_statement(statement)


def _print_statement(statement: dict[str, Any]) -> None:
    verdict = "[green]confirmed" if statement["is_confirmed"] else "[red]not confirmed"
    console.print(f"{verdict}[/]  {statement['statement']}", highlight=False)
    for part in statement["parts"]:
        a, b = (100 * figure for figure in part["figures"])
        mark = "yes" if part["is_confirmed"] else "no"
        clear = (
            "" if part["is_clear"] == part["is_confirmed"] else ", intervals overlap"
        )
        console.print(
            f"    {mark}: {part['claim']} ({a:.1f}, {b:.1f}{clear})", highlight=False
        )
    for start, reason in WHY_NOT.items():
        if statement["statement"].startswith(start) and not statement["is_confirmed"]:
            console.print(f"    perhaps because {reason}", highlight=False)


def _name(training: str, row: str) -> str:
    under = "natural images" if row == "natural" else row
    return (
        f"{training}-trained on {under}"
        if row == "natural"
        else (f"{training}-trained under {under}")
    )


def _format(cell: dict[str, float]) -> str:
    low, high = 100 * cell["low"], 100 * cell["high"]
    return f"{100 * cell['accuracy']:.1f} [{low:.1f}, {high:.1f}]"
