"""The array cache."""

import pathlib
import warnings

import numpy as np
import pytest

from jaxrobust.data.cache import cached, default_cache_dir


class Builder:
    """Counts how often the arrays are built."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"x": np.arange(5000, dtype=np.uint8), "y": np.arange(3, dtype=np.int32)}


def assert_built(arrays: dict[str, np.ndarray]) -> None:
    expected = Builder()()
    assert arrays.keys() == expected.keys()
    for name, value in expected.items():
        assert arrays[name].dtype == value.dtype and np.array_equal(arrays[name], value)


def test_second_read_builds_nothing(tmp_path):
    build, path = Builder(), tmp_path / "deep" / "a.npz"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_built(cached(path, build))
        assert_built(cached(path, build))
    assert build.calls == 1
    assert [p.name for p in path.parent.iterdir()] == [
        "a.npz"
    ]  # No temporary file left.


def flip_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flip_byte, lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"text"],
    ids=["one bit", "half of it", "empty", "not an archive"],
)
def test_damaged_file_is_rebuilt(tmp_path, damage):
    build, path = Builder(), tmp_path / "a.npz"
    cached(path, build)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="Rebuilding the cache"):
        assert_built(cached(path, build))
    assert_built(cached(path, build))
    assert build.calls == 2


def test_unwritable_directory_warns_and_goes_on(tmp_path):
    # A file in the place of the directory: unwritable for root too.
    (tmp_path / "file").write_text("")
    build, path = Builder(), tmp_path / "file" / "a.npz"
    with pytest.warns(
        UserWarning, match="Cannot write the cache .*JAXROBUST_CACHE_DIR"
    ):
        assert_built(cached(path, build))


def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.warns(UserWarning, match="No space left"):
        assert_built(cached(tmp_path / "a.npz", Builder()))
    assert list(tmp_path.iterdir()) == []


def test_default_directory(monkeypatch):
    monkeypatch.setenv("JAXROBUST_CACHE_DIR", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert default_cache_dir() == pathlib.Path("/one")
    monkeypatch.delenv("JAXROBUST_CACHE_DIR")
    assert default_cache_dir() == pathlib.Path("/two/jaxrobust")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == pathlib.Path.home() / ".cache/jaxrobust"
