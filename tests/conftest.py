"""Options and fixtures of the whole test suite."""

import os
import pathlib
import signal
from collections.abc import Iterator

import jax
import pytest

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
