"""Write the measured tables of the README from the committed results.

Command   python -m experiments.readme_tables           (--check: only compare)

Time      a second

Expected  README.md with the figures of experiments/results/*.json, and nothing else changed
"""

import json
import pathlib
import re
import statistics
import sys
from typing import Any

from jaxrobust.attacks import table as attack_table

_ROOT = pathlib.Path(__file__).parent.parent
_RESULTS = _ROOT / "experiments" / "results"
_BENCHMARKS = _ROOT / "benchmarks" / "results"
# The seconds in the table are the first one's.
_SPEED = {
    "peer / jaxrobust, AMD EPYC": _BENCHMARKS / "cpu.json",
    "Intel Xeon": _BENCHMARKS / "cpu_intel.json",
}


def render(name: str) -> str:
    """Return the Markdown of one result file, with where it comes from."""
    result = json.loads((_RESULTS / f"{name}.json").read_text())
    return _TABLES[result["experiment"]](result) + f"\n\n{_source(name, result)}"


def render_speed() -> str:
    """Return the table of the benchmark: ours, the fastest peer, and their ratios."""
    runs = [json.loads(path.read_text())["tasks"] for path in _SPEED.values()]
    columns = ("task", "jaxrobust", "fastest peer", *_SPEED)
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name, task in runs[0].items():
        found = [_to_fastest(tasks[name]) for tasks in runs]
        if not all(found):  # a task without peers
            continue
        peers, ratios = zip(*filter(None, found), strict=True)
        peer, sides = peers[0], task["sides"]
        lines.append(
            f"| {task['title']} | {sides['jaxrobust']['seconds']:.3g} s "
            f"| {sides[peer]['seconds']:.3g} s ({peer}) | {' | '.join(ratios)} |"
        )
    return "\n".join([*lines, "", *map(_measured_with, runs)])


def _to_fastest(task: dict[str, Any]) -> tuple[str, str] | None:
    """Return the fastest peer and the ratio of its time to ours, or None without peers."""
    ratios = {n: r for n, r in task["ratios"].items() if not n.startswith("jaxr")}
    if not ratios:
        return None
    peer = min(ratios, key=lambda name: ratios[name]["median"])
    ratio = ratios[peer]
    spread = f" [{ratio['min']:.2f}, {ratio['max']:.2f}]" * (task["rounds"] > 1)
    return peer, f"{ratio['median']:.2f}{spread}"


def _measured_with(tasks: dict[str, Any]) -> str:
    where = next(iter(tasks.values()))["provenance"]
    versions = where["versions"]
    commits = dict.fromkeys(t["provenance"]["commit"][:7] for t in tasks.values())
    return (
        f"`python -m benchmarks.run`, {where['cores']} cores of {where['processor']}, "
        f"{where['date'][:10]}, commit {' and '.join(commits)}, jaxlib "
        f"{versions['jaxlib']}, torch {versions['torch']}, torchattacks "
        f"{versions['torchattacks']}, foolbox {versions['foolbox']}.\n"
    )


def update(text: str) -> str:
    """Return the README with every marked table written anew."""

    def table(match: re.Match) -> str:
        return f"{match[1]}\n{render(match[2])}\n{match[3]}"

    marked = r"(<!-- result: (\w+) -->)\n.*?\n?(<!-- end -->)"
    text = re.sub(marked, table, text, flags=re.DOTALL)
    speed = r"(<!-- speed -->)\n.*?\n?(<!-- end -->)"
    text = re.sub(speed, rf"\1\n{render_speed()}\n\2", text, flags=re.DOTALL)
    attacks = r"(<!-- attacks -->)\n.*?\n?(<!-- end -->)"
    replacement = rf"\1\n{attack_table.markdown()}\n\2"
    return re.sub(attacks, replacement, text, flags=re.DOTALL)


def _source(name: str, result: dict[str, Any]) -> str:
    path = f"experiments/results/{name}.json"
    minutes = round(result["seconds"] / 60)
    return (
        f"`{result['command']}`, {minutes} minute{'s' * (minutes != 1)} on "
        f"{result['cores']} cores ({result['device']}), {result['date'][:10]}, commit "
        f"{result['commit'][:7]}: [{path}]({path})."
    )


def _robustness_table(result: dict[str, Any]) -> str:
    names = list(result["table"])
    lines = ["| accuracy in % | " + " | ".join(f"{n} training" for n in names) + " |"]
    lines.append("|---|" + "---|" * len(names))
    for row in ("natural", "FGSM", "PGD"):
        cells = []
        for name in names:
            cell = result["table"][name]["cells"][row]
            low, high = 100 * cell["low"], 100 * cell["high"]
            cells.append(f"{100 * cell['accuracy']:.1f} [{low:.1f}, {high:.1f}]")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    lines.append("")
    for item in result["statements"]:
        verdict = "confirmed" if item["is_confirmed"] else "not confirmed"
        failed = [p for p in item["parts"] if not p["is_confirmed"]]
        why = "; ".join(
            f"{p['claim']}: no, {100 * p['figures'][0]:.1f} and "
            f"{100 * p['figures'][1]:.1f}"
            for p in failed
        )
        lines.append(
            f"- **{verdict}**: {item['statement']}" + (f" ({why})" if why else "")
        )
    config = result["config"]
    caption = (
        f"{config['dataset']}, l_inf, eps = {config['eps']:.3g}, {result['num_test']:,} "
        f"test images, PGD: {result['attacks']['PGD']}, 95% Wilson intervals, seed "
        f"{config['seed']}."
    )
    return "\n".join([caption, "", *lines])


def _spread(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _of_seeds(num_seeds: int) -> str:
    if num_seeds == 1:
        return "one seed"
    return f"mean ± standard deviation of {num_seeds} seeds"


def _errors(result: dict[str, Any], figures: dict[str, str], unit: str) -> str:
    lines = ["| error in % | " + " | ".join(f"{f} | {unit}" for f in figures.values())]
    lines[0] += " |"
    lines.append("|---|" + "---|---|" * len(figures))
    for name, lecture in result["lecture"].items():
        runs = [run for run in result["runs"] if run["training"] == name]
        cells = [
            f"{_spread([run[figure] for run in runs])} | {lecture[figure]:g}"
            for figure in figures
        ]
        lines.append(f"| {name} training | " + " | ".join(cells) + " |")
    config = result["config"]
    caption = (
        f"{config['dataset']}, l_inf, eps = {config['eps']}, no bounds, "
        f"{result['num_test']:,} test images, {_of_seeds(config['num_seeds'])}."
    )
    return "\n".join([caption, "", *lines])


def _mnist_fgsm(result: dict[str, Any]) -> str:
    return _errors(result, {"clean": "clean", "fgsm": "FGSM"}, "lecture")


def _linear_mnist(result: dict[str, Any]) -> str:
    return _errors(result, {"clean": "clean", "exact": "exact attack"}, "tutorial")


def _evaluate(result: dict[str, Any]) -> str:
    report = result["report"]

    def percent(kind: str) -> str:
        low, high = (100 * bound for bound in report[f"{kind}_interval"])
        return f"{100 * report[f'{kind}_accuracy']:.2f} [{low:.2f}, {high:.2f}]"

    cost = report["cost"]
    lines = [
        f"{result['name']}, {report['settings']['threat']}, "
        f"{report['num_examples']:,} test images, 95% Wilson intervals.",
        "",
        "| accuracy in % | |",
        "|---|---|",
        f"| clean | {percent('clean')} |",
        *(
            f"| after {row['attack']} | {100 * row['robust_accuracy_after']:.2f} |"
            for row in report["credit"]
        ),
        f"| robust | {percent('robust')} |",
        "",
        f"{cost['gradients']:,} gradient evaluations and {cost['forwards']:,} forwards.",
    ]
    return "\n".join(lines)


def _train(result: dict[str, Any]) -> str:
    config, reports = result["config"], result["reports"]

    def row(name: str, report: dict[str, Any], kind: str) -> str:
        low, high = (100 * bound for bound in report[f"{kind}_interval"])
        accuracy = 100 * report[f"{kind}_accuracy"]
        return f"| {name} | {accuracy:.2f} [{low:.2f}, {high:.2f}] |"

    any_report = next(iter(reports.values()))
    lines = [
        f"`{result['recipe']}`: {config['dataset']}, {result['threat']}, "
        f"{any_report['num_examples']:,} test images, 95% Wilson intervals, seed "
        f"{config['seed']}; trained in {round(result['train_seconds'] / 60)} minutes.",
        "",
        "| accuracy in % | |",
        "|---|---|",
        row("clean", any_report, "clean"),
        *(row(f"under {name}", report, "robust") for name, report in reports.items()),
    ]
    return "\n".join(lines)


def _fast_evaluation(result: dict[str, Any]) -> str:
    config, lines = result["config"], []
    for name, row in result["networks"].items():
        standard, fast = row["autoattack"], row["autoattack-fast"]
        left = (f"{100 * report['robust_accuracy']:.2f}" for report in (standard, fast))
        ratios = (
            f"{row['ratios'][n]:.1f}" for n in ("gradients", "forwards", "seconds")
        )
        cells = (f"{name}, {fast['settings']['threat']}", *left, *ratios)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            f"The first {config['num_test']:,} test images, accuracy left in %, and how "
            "many times as much `standard` takes (seconds with compilation).",
            "",
            "| network | standard | fast | gradients | forwards | seconds |",
            "|---|---|---|---|---|---|",
            *lines,
        ]
    )


_TABLES = {
    "fast_evaluation": _fast_evaluation,
    "train": _train,
    "evaluate": _evaluate,
    "robustness_table": _robustness_table,
    "mnist_fgsm": _mnist_fgsm,
    "linear_mnist": _linear_mnist,
}


def main() -> None:
    """Update the README, or with --check fail where it differs."""
    unknown = [word for word in sys.argv[1:] if word != "--check"]
    if unknown:
        raise SystemExit(
            "usage: python -m experiments.readme_tables [--check]\n\n"
            f"Write the measured tables of the README; --check only compares. "
            f"Nothing was done: {' '.join(unknown)} is none of its options."
        )
    path = _ROOT / "README.md"
    before = path.read_text()
    after = update(before)
    if "--check" in sys.argv[1:]:
        if before != after:
            raise SystemExit(
                "README.md differs: run python -m experiments.readme_tables"
            )
        return
    path.write_text(after)


if __name__ == "__main__":
    main()
