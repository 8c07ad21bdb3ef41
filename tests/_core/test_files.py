"""Files are replaced as a whole or not at all."""

import os

import pytest

from jaxrobust._core.files import replaced


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with replaced(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(error), replaced(path) as file:
        file.write(b"half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


def test_two_writers_do_not_meet(tmp_path):
    """Each has a temporary of its own; the last one counts."""
    path = tmp_path / "a.json"
    with replaced(path) as first:
        first.write(b"first")
        with replaced(path) as second:
            second.write(b"second, longer")
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["a.json"]


def test_an_error_says_which_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        with replaced(tmp_path / "absent" / "a.json"):
            pytest.fail("there is nothing to write to")
