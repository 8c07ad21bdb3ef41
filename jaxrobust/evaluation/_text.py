"""The report as text: a table for the terminal, at most 80 columns where it can be."""

from typing import Any

# Classes beside each other: 10 + 10 * 7 columns.
_IN_A_ROW = 10
# Above this many classes only the weakest are shown.
_MAX_SHOWN = 30

# What a count of the audit says; each is a reason not to believe the robust accuracy.
_AUDIT = {
    "outside_ball": "{count} of {total} points lie outside the ball of the threat",
    "outside_bounds": "{count} of {total} points lie outside the bounds of the data",
    "outside_mask": "{count} of {total} points are changed where the mask forbids it",
    "not_finite": "{count} values of the points are NaN or infinite",
}


def table(report: Any) -> str:
    """Return accuracies with their intervals, cost, credit, audit, classes and groups."""
    figures = report.summary()
    lines = [
        f"attack    {report.settings['attack']}",
        f"threat    {report.settings['threat']}",
        f"examples  {len(report.y)}",
        f"clean     {_percent(report.clean_accuracy, figures['clean_interval'])}",
        f"robust    {_percent(report.robust_accuracy, figures['robust_interval'])}"
        f"{'' if report.is_finished else '  not finished: an upper bound'}",
        f"loss      {figures['mean_loss']:.4f} clean, "
        f"{figures['mean_loss_adv']:.4f} attacked",
        f"distance  mean {report.distance.mean():.4g}, max {report.distance.max():.4g}",
    ]
    if report.draws is not None:
        random = report.settings["random_model"]
        lines.append(
            f"random    random model: mean over {report.draws.shape[1]} fresh draws; a "
            f"prediction averages {random['draws_per_prediction']}"
        )
    if report.claimed_accuracy is not None:
        lines.append(
            f"claimed   {100 * report.claimed_accuracy:.2f}% in the draws that the attack "
            "saw: counts its luck"
        )
    if report.cost:
        lines.append(
            f"cost      {report.cost['gradients']:,} gradients, "
            f"{report.cost['forwards']:,} forwards"
        )
    if len(report.attacks) > 1:
        lines += [
            f"  after {row['attack']:<22} {100 * row['robust_accuracy_after']:6.2f}%   "
            f"({row['new_breaks']:.4g} broken{'' if row['is_finished'] else ', stopped'})"
            for row in report.credit()
        ]
    if not report.is_finished:
        lines.append(f"STOPPED   {report.why_unfinished()}")
    lines += [f"AUDIT     {text}" for text in audit(report.audit, len(report.y))]
    if count := report.audit.get("logits_not_finite"):
        lines.append(f"note      {count} predictions are not numbers, and so broken")
    lines += columns("class", report.per_class())
    lines += columns("group", report.per_group())
    return "\n".join(lines)


def union(report: Any) -> str:
    """Return a row for each threat, and what withstands all of them."""
    attacks = list(dict.fromkeys(row["attack"] for row in report.rows()))
    width = max(15, *(len(row["threat"]) for row in report.rows()))
    clean = report.reports[0].summary()["clean_interval"]
    lines = [
        f"examples  {len(report.is_robust)}",
        f"{'clean':<{width}}  {_percent(report.clean_accuracy, clean)}",
    ]
    for row in report.rows():
        text = _percent(row["robust_accuracy"], row["robust_interval"])
        own = f"  {row['attack']}" if len(attacks) > 1 else ""
        bound = "" if row["is_finished"] else "  not finished: an upper bound"
        lines.append(f"{row['threat']:<{width}}  {text}{own}{bound}")
    text = _percent(report.robust_accuracy, report.robust_interval)
    bound = "" if report.is_finished else "  not finished: an upper bound"
    lines += [
        f"{'all of them':<{width}}  {text}{bound}",
        f"{'their mean':<{width}}  {100 * report.average_accuracy:.2f}%",
    ]
    if len(attacks) == 1:
        lines.insert(0, f"attack    {attacks[0]}")
    for row, one in zip(report.rows(), report.reports, strict=True):
        found = audit(one.audit, len(one.y))
        lines += [f"AUDIT     {row['threat']}: {text}" for text in found]
    return "\n".join(lines)


def audit(counts: dict[str, Any], total: int) -> list[str]:
    """Return a sentence for each count that is not 0, and what follows from them."""
    found = [
        text.format(count=counts[name], total=total)
        for name, text in _AUDIT.items()
        if counts.get(name)
    ]
    if not found:
        return []
    return [
        *(f"{text}." for text in found),
        "Not a robust accuracy for this threat: an attack of your own ends with "
        "threat.project(x_adv, x).",
    ]


def columns(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return a small table with one column for each class or group."""
    if not rows:
        return []
    lines, total = [], len(rows)
    if total > _MAX_SHOWN:
        rows = sorted(rows, key=lambda row: row["robust_accuracy"])[:_IN_A_ROW]
        method = f"per_{name}()"
        lines.append(
            f"{name:<10}the {_IN_A_ROW} weakest of {total:,}; report.{method} has all"
        )
    for start in range(0, len(rows), _IN_A_ROW):
        block = rows[start : start + _IN_A_ROW]
        lines.append(f"{name:<10}" + "".join(f"{row[name]:>7}" for row in block))
        for kind in ("clean", "robust"):
            cells = (f"{100 * row[f'{kind}_accuracy']:7.1f}" for row in block)
            lines.append(f"{kind:<10}" + "".join(cells))
    return lines


def _percent(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:.2f}%  [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"
