"""The tables of docs/benchmarks.md, written from the saved results."""

import json
import pathlib
import re

from benchmarks import table

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "benchmarks.md"


def write(results: pathlib.Path, page: pathlib.Path = PAGE) -> None:
    """Write every marked table of the page anew."""
    page.write_text(update(page.read_text(), results))


def update(text: str, results: pathlib.Path) -> str:
    """Return the page with the tables of the results in a directory."""

    def section(match: re.Match) -> str:
        return f"{match[1]}\n{_render(results / f'{match[2]}.json')}\n{match[3]}"

    marked = r"(<!-- benchmark: (\w+) -->)\n.*?\n?(<!-- end -->)"
    return re.sub(marked, section, text, flags=re.DOTALL)


def _render(path: pathlib.Path) -> str:
    if not path.is_file():
        return "Not measured yet."
    tasks = json.loads(path.read_text())["tasks"]
    return "\n\n".join([table.markdown(tasks), *_sources(tasks)])


def _sources(tasks: dict) -> list[str]:
    """Return where the figures come from: one paragraph for each commit and machine."""
    named: dict[str, list[str]] = {}
    for name, task in tasks.items():
        origin = task["provenance"]
        versions = ", ".join(f"{k} {v}" for k, v in origin["versions"].items())
        source = (
            f"`{origin['command']}` on {origin['cores']} cores "
            f"({origin['processor']}; {origin['device']}), {origin['date'][:10]}, commit "
            f"{origin['commit'][:7]}, Python {origin['python']}, JAX {origin['jax']}, "
            f"{versions}."
        )
        named.setdefault(source, []).append(f"`{name}`")
    return [f"{', '.join(names)}: {source}" for source, names in named.items()]
