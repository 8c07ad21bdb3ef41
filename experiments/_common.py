"""What the experiments share: the terminal, provenance of results, files."""

import contextlib
import dataclasses
import datetime
import fractions
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import jax
import rich.console
import tyro

import jaxrobust as jr

# Not wrapped at the 80 columns that a file or a pipe is taken for.
console = rich.console.Console(width=None if sys.stdout.isatty() else 150)

# A number, or a fraction as the papers write it: --eps 8/255.
Number = Annotated[
    float,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=lambda words: float(fractions.Fraction(words[0])),
        is_instance=lambda value: isinstance(value, float | int),
        str_from_instance=lambda value: [str(value)],
    ),
]

# What `--threat` names.
THREATS = {"linf": jr.Linf, "l2": jr.L2, "l1": jr.L1}


@contextlib.contextmanager
def friendly_errors() -> Iterator[None]:
    """End a command on a user's mistake with its message instead of a traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("JAXROBUST_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        print("(JAXROBUST_TRACEBACK=1 shows where)", file=sys.stderr)
        raise SystemExit(2) from None


def provenance() -> dict[str, Any]:
    """Return what a reader needs to judge a figure: date, commit, hardware, versions.

    To be called when the work starts: the commit is then that of the code that is loaded.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": f"python -m {_module_name()} {_arguments()}".strip(),
        "commit": _commit(),
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2, default=str) + "\n")
    temporary.replace(path)


def _module_name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else pathlib.Path(sys.argv[0]).stem


def config_of(config: Any) -> dict[str, Any]:
    """Return a configuration as JSON values, without the paths of this machine."""
    values = dataclasses.asdict(config)
    chosen = {k: v for k, v in values.items() if not isinstance(v, pathlib.Path)}
    chosen.pop("data_dir", None)
    return json.loads(json.dumps(chosen))


def _arguments() -> str:
    """Return the command line without --out and without directories."""
    text = " ".join(sys.argv[1:])
    text = re.sub(r"--out[ =]\S+ ?", "", text)
    text = re.sub(r"(--data-dir|--checkpoints|--weights)[ =]\S+", r"\1 DIR", text)
    # Of other paths, only the name: the rest is this machine's.
    return re.sub(r"(?<!\S)/\S*/", "", text).strip()


def _commit() -> str:
    """Return the commit, marked where the working tree differs from it."""
    here = pathlib.Path(__file__).parent
    try:
        options = dict(cwd=here, capture_output=True, text=True, check=True)
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **options).stdout.strip()
        command = ["git", "status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run(command, **options).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + (" with uncommitted changes" if changed else "")


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
