"""Options and fixtures of the whole test suite."""

import collections
import gc
import os
import pathlib
import signal
from collections.abc import Iterator

import jax
import pytest

# Most of the time of a test goes into compilation. Programs that LLVM has not optimised
# are compiled in two thirds of the time; `JAXROBUST_OPTIMIZE=1` tests those of users.
if not os.environ.get("JAXROBUST_OPTIMIZE"):
    _FLAGS = "--xla_backend_optimization_level=0"
    _FLAGS += " --xla_llvm_disable_expensive_passes=true"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()

# Experiments that tests call keep no programs in the user's cache.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")

# Four virtual devices for the tests of sharding; must come before JAX starts.
jax.config.update("jax_num_cpu_devices", 4)
# Silent broadcasts of arrays of different rank are errors.
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare `--data-dir`."""
    parser.addoption(
        "--data-dir",
        default=None,
        help="directory of prepared tensorflow-datasets data (default: TFDS_DATA_DIR); "
        "tests that need real data are skipped without it",
    )


@pytest.hookimpl(tryfirst=True)  # before -m takes its choice
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run a sixteenth of the cases of a test marked `thin`, seven in the slow run.

    The others are marked `exhaustive`, for the week of a release.
    """
    count: collections.Counter[tuple] = collections.Counter()
    for item in items:
        if item.get_closest_marker("thin") is None or "[" not in item.name:
            continue
        test = (item.path, item.name.split("[")[0])
        i = count[test]
        count[test] += 1
        turn = (i + i // 16) % 16  # in turn, where the cases are a grid
        if turn:
            item.add_marker(
                pytest.mark.slow if turn % 2 == 0 else pytest.mark.exhaustive
            )


@pytest.fixture(scope="session")
def data_dir(request: pytest.FixtureRequest) -> pathlib.Path:
    """Directory of prepared data; skips where none is given."""
    option = request.config.getoption("--data-dir")
    chosen = option or os.environ.get("TFDS_DATA_DIR")
    if not chosen:
        pytest.skip("needs prepared data: give --data-dir or TFDS_DATA_DIR")
    directory = pathlib.Path(chosen).expanduser()
    if option and not directory.is_dir():
        pytest.fail(f"--data-dir={option} is not a directory")
    return directory


# Linux maps at most 65,530 regions into a process, and each compiled program takes some:
# a process that has run a thousand tests dies in the compiler.
_MAPS, _MOST_MAPS = pathlib.Path("/proc/self/maps"), 30_000


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Forget compiled programs before there are too many of them."""
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let SIGINT raise, as in a terminal: the processes of pytest-xdist ignore it."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def no_key_reuse() -> Iterator[None]:
    """Make it an error if the library draws twice from one key."""
    with jax.debug_key_reuse(True):
        yield
