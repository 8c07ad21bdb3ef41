"""What a diagnosis says: checks with a verdict, a figure and what to do."""

import dataclasses
from collections.abc import Iterator
from typing import Any

PASS, WARN, FAIL = "pass", "warn", "fail"


@dataclasses.dataclass(frozen=True)
class Check:
    """One test of whether an evaluation can be believed.

    Args:
      name: Short name.
      verdict: "pass", "warn" or "fail".
      figure: What was measured.
      threshold: Where the verdict becomes "fail".
      finding: What the figure is.
      advice: What to do if it does not pass.

    Example:
      >>> check = Check("zero_gradients", "fail", 0.9, 0.1, "zero gradients", "use BPDA")
      >>> print(check.name, check.verdict)
      zero_gradients fail
    """

    name: str
    verdict: str
    figure: float
    threshold: float
    finding: str
    advice: str


def judged(
    name: str,
    figure: float,
    threshold: float,
    finding: str,
    advice: str,
    *,
    warn_above: float | None = None,
) -> Check:
    """Return a check that fails where the figure exceeds the threshold or is NaN."""
    figure = float(figure)
    verdict = PASS if figure <= threshold else FAIL
    if verdict == PASS and warn_above is not None and figure > warn_above:
        verdict = WARN
    return Check(name, verdict, figure, float(threshold), finding, advice)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The checks of one model; made by `diagnose`.

    `print(diagnosis)` shows a table, `diagnosis["zero_gradients"]` one check.

    Args:
      checks: All checks, in the order in which they were made.
      accuracy: Clean accuracy on the given examples.
      robust_accuracy: Accuracy left by the attacks of the checks together: an upper bound.
      num_examples: How many examples were given.

    Example:
      >>> check = judged("zero_gradients", 0.5, 0.05, "share of examples", "use BPDA")
      >>> diagnosis = Diagnosis((check,), 1.0, 0.9, 100)
      >>> print(diagnosis.flagged, diagnosis["zero_gradients"].verdict)
      ('zero_gradients',) fail
    """

    checks: tuple[Check, ...]
    accuracy: float
    robust_accuracy: float
    num_examples: int

    @property
    def flagged(self) -> tuple[str, ...]:
        """Names of the checks that fail; empty if nothing speaks against the model."""
        return tuple(c.name for c in self.checks if c.verdict == FAIL)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Names of the checks that warn."""
        return tuple(c.name for c in self.checks if c.verdict == WARN)

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def __len__(self) -> int:
        return len(self.checks)

    def __getitem__(self, name: str) -> Check:
        for check in self.checks:
            if check.name == name:
                return check
        names = ", ".join(check.name for check in self.checks)
        raise KeyError(f"no check is named {name!r}; there are: {names}")

    def summary(self) -> dict[str, Any]:
        """Return everything as JSON-compatible values."""
        checks = [dataclasses.asdict(check) for check in self.checks]
        for check in checks:  # JSON has no NaN and no infinity
            for name in ("figure", "threshold"):
                if abs(check[name]) == float("inf") or check[name] != check[name]:
                    check[name] = str(check[name])
        return {
            "flagged": list(self.flagged),
            "warnings": list(self.warnings),
            "num_examples": self.num_examples,
            "accuracy": self.accuracy,
            "robust_accuracy": self.robust_accuracy,
            "checks": checks,
        }

    def __str__(self) -> str:
        lines = [f"{'check':<22}{'verdict':<9}{'figure':>10}{'limit':>10}  measured"]
        for check in self.checks:
            lines.append(
                f"{check.name:<22}{check.verdict:<9}{check.figure:>10.3g}"
                f"{check.threshold:>10.3g}  {check.finding}"
            )
        for check in self.checks:
            if check.verdict != PASS:
                lines.append(f"{check.verdict}: {check.name}: {check.advice}")
        lines.append(
            f"accuracy {self.accuracy:.1%}, at most {self.robust_accuracy:.1%} robust "
            f"on {self.num_examples} examples; "
            + (
                f"NOT to be believed: {len(self.flagged)} checks fail"
                if self.flagged
                else "nothing speaks against the evaluation"
            )
        )
        return "\n".join(lines)
