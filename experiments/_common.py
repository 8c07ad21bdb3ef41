"""What the experiments share: the terminal, provenance of results, files."""

import _thread
import contextlib
import dataclasses
import datetime
import fractions
import json
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Annotated, Any, Literal, cast

import jax
import rich.box
import rich.console
import rich.table
import tyro

import jaxrobust as jr
from jaxrobust._core import files

# Files and pipes are taken for 80 columns: sentences are not wrapped there.
_WIDTH = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 150
console = rich.console.Console(width=_WIDTH)

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


# What the library's messages call by the names of its arguments.
_OPTIONS = {
    "resume=False": "--restart",
    "output directory (out)": "--out",
    "another out,": "another --out,",
    "another state_file, or remove it to begin again": "another --out, or --restart",
}


@dataclasses.dataclass(frozen=True)
class Pictures:
    """How pictures are written."""

    formats: tuple[Literal["png", "pdf", "svg"], ...] = ("png",)
    """File formats of the pictures."""
    dpi: int = 200
    """Dots per inch of PNG."""

    def save(self, figure: Any, path: pathlib.Path) -> list[pathlib.Path]:
        """Write a figure in each format; returns the files."""
        paths = [path.with_suffix(f".{kind}") for kind in self.formats]
        for file in paths:
            figure.savefig(file, dpi=self.dpi)
        return paths

    def options(self) -> dict[str, Any]:
        """Return the arguments of `Report.save`."""
        return {"formats": self.formats, "dpi": self.dpi}


PICTURES = Pictures()


def parse(config: Any, name: str, description: str | None, **options: Any) -> Any:
    """Read the command line of `python -m experiments.NAME`."""
    prog = f"python -m experiments.{name}"
    keep_compiled()
    return tyro.cli(config, prog=prog, description=description, **options)


def keep_compiled() -> None:
    """Keep compiled programs for later runs, unless the user has said where, or not to.

    Apart for each processor: a home directory may be shared, and programs are made for one.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    if cast(Any, jax.config).jax_compilation_cache_dir is not None:
        return
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    processor = re.sub(r"\W+", "_", _processor())
    path = pathlib.Path(cache).expanduser() / "jaxrobust" / "compiled" / processor
    jax.config.update("jax_compilation_cache_dir", str(path))
    # JAX keeps what has taken a second; most programs of an evaluation take less.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def text_of(eps: float) -> str:
    """Return a radius as one types it: 8/255, 0.3."""
    return repr(jr.Linf(eps)).removeprefix("Linf(").removesuffix(")")


def short(path: str | pathlib.Path) -> str:
    """Return the end of a path, for titles: PGD/best."""
    return "/".join(pathlib.Path(path).parts[-2:])


@contextlib.contextmanager
def friendly_errors(*, resumes: bool = True) -> Iterator[None]:
    """End a command on a mistake or Ctrl-C with a message instead of a traceback.

    Args:
      resumes: Whether the experiment saves what it has done; False: it begins again.
    """
    hook, sys.unraisablehook = sys.unraisablehook, _not_lost
    try:
        yield
    except KeyboardInterrupt:
        goes_on = "goes on where it stopped, from what was last saved"
        what = goes_on if resumes else "begins again; nothing was saved"
        words = (word for word in sys.argv[1:] if word != "--restart")
        command = f"python -m {_module_name()} {shlex.join(words)}".strip()
        text = f"\nstopped: the same command {what}\n    {command}"
        print(text, file=sys.stderr, flush=True)
        sys.stdout.flush()
        # At once: XLA's threads still compute, and the interpreter's end crashes on them.
        os._exit(130)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("JAXROBUST_TRACEBACK"):
            raise
        text = str(error)
        for argument, option in _OPTIONS.items():
            text = text.replace(argument, option)
        print(f"error: {text}", file=sys.stderr)
        print("(JAXROBUST_TRACEBACK=1 shows where)", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        sys.unraisablehook = hook


def _not_lost(unraisable: Any) -> None:
    """Repeat a Ctrl-C that fell into a callback (of JAX, at garbage collection).

    Python can only print what is raised there, and the experiment would go on.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(0.1, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(unraisable)


def new_table(title: str) -> rich.table.Table:
    """Return a table whose cells are narrow enough, and never broken, at 80 columns."""
    return rich.table.Table(
        title=title,
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


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
    text = json.dumps(value, indent=2, default=str) + "\n"
    with files.replaced(path) as file:
        file.write(text.encode())


def _module_name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else pathlib.Path(sys.argv[0]).stem


def config_of(config: Any) -> dict[str, Any]:
    """Return a configuration as JSON values, without the paths of this machine."""
    values = dataclasses.asdict(config)
    chosen = {k: v for k, v in values.items() if not isinstance(v, pathlib.Path)}
    for name in ("data_dir", "out", "data", "restart", "pictures"):  # not of the result
        chosen.pop(name, None)
    return json.loads(json.dumps(chosen))


def _arguments() -> str:
    """Return the command line without --out and without directories."""
    text = " ".join(sys.argv[1:])
    text = re.sub(r"--out[ =]\S+ ?|--restart ?", "", text)
    text = re.sub(
        r"(--data-dir|--data|--checkpoints|--weights)[ =]\S+", r"\1 DIR", text
    )
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
