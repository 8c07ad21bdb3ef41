"""One table of all results, for the terminal and for the documentation."""

from collections.abc import Callable, Iterator
from typing import Any

import rich.table

from benchmarks.task import OURS

_MIB = 2**20


def columns(results: dict[str, Any]) -> list[str]:
    """Return the sides that occur: jaxrobust, then the peers."""
    found = dict.fromkeys(side for task in results.values() for side in task["sides"])
    return [OURS, *(side for side in found if side != OURS)]


def rows(results: dict[str, Any]) -> list[list[list[str]]]:
    """Return the lines of each task: title or measure, a cell for each side, ratio."""
    sides = columns(results)
    return [list(_lines(task, sides)) for task in results.values()]


def _lines(task: dict[str, Any], sides: list[str]) -> Iterator[list[str]]:
    def line(what: str, cell: Callable[[str, dict[str, Any]], str | None]):
        cells = [
            (cell(side, task["sides"][side]) or "–") if side in task["sides"] else ""
            for side in sides
        ]
        return [what, *cells, ""]

    def number(name: str, form: str, unit: float = 1):
        return lambda _, side: format(side[name] / unit, form) if name in side else None

    def figure(name: str):
        return lambda _, side: _figure(side.get("figures", {}).get(name))

    measured = task["sides"].values()
    times = line(task["title"], lambda name, side: _time(task, name, side))
    yield [*times[:-1], _ratio(task)]
    if any(side.get("compile_seconds") for side in measured):
        yield line("compilation, s", number("compile_seconds", ".1f"))
    if any("gradients" in side for side in measured):
        yield line("gradient evaluations", number("gradients", ",.0f"))
        yield line("forward evaluations", number("forwards", ",.0f"))
    yield line("peak memory, MiB", number("peak_bytes", ",.0f", _MIB))
    names = [name for side in measured for name in side.get("figures", {})]
    for name in dict.fromkeys(names):
        yield line(name, figure(name))
    for target in task["targets"]:
        verdict = {True: "met", False: "MISSED", None: "not judged"}[target["is_met"]]
        yield [f"target: {target['text']}", *("" for _ in sides), verdict]


def _time(task: dict[str, Any], name: str, side: dict[str, Any]) -> str:
    if "failed" in side:
        return "failed"
    seconds = f"{side['seconds']:.3g} s"
    ratio = task["ratios"].get(name)
    return seconds if ratio is None else f"{seconds} ({ratio['median']:.2f}x)"


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _ratio(task: dict[str, Any]) -> str:
    """Return the ratio to the fastest peer, with its range over the turns."""
    if not task["ratios"]:
        return ""
    fastest = min(task["ratios"].values(), key=lambda ratio: ratio["median"])
    return f"{fastest['median']:.2f} [{fastest['min']:.2f}, {fastest['max']:.2f}]"


def terminal(results: dict[str, Any]) -> rich.table.Table:
    """Return the table for the terminal."""
    title = "median time (peer / jaxrobust: above 1, jaxrobust is faster)"
    if any(task.get("quick") for task in results.values()):
        title += "; --quick: tiny shapes, figures mean nothing"
    table = rich.table.Table(title=title)
    table.add_column("task")
    for name in (*columns(results), "ratio to the fastest"):
        table.add_column(name, justify="right")
    for title, *lines in rows(results):
        table.add_row(*title, style="bold")
        for line in lines:
            table.add_row(f"  {line[0]}", *line[1:])
        table.add_section()
    return table


def markdown(results: dict[str, Any]) -> str:
    """Return the table for the documentation."""
    names = ["task", *columns(results), "ratio to the fastest"]
    lines = [names, ["---", *("---:" for _ in names[1:])]]
    for title, *others in rows(results):
        lines += [[f"**{cell}**" if cell else "" for cell in title], *others]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
