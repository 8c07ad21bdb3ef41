"""What the experiments share."""

import pytest
import tyro

from experiments import attack


@pytest.mark.parametrize(
    "text, value", [("8/255", 8 / 255), ("0.3", 0.3), ("1e-2", 0.01)]
)
def test_radii_as_the_papers_write_them(text, value):
    assert tyro.cli(attack.Config, args=["checkpoint", "--eps", text]).eps == value


def test_a_radius_that_is_no_number(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(attack.Config, args=["checkpoint", "--eps", "large"])
    assert "large" in capsys.readouterr().err
