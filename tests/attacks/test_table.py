"""The table of attacks agrees with the attacks."""

import pytest

import jaxrobust as jr
from jaxrobust.attacks import table


def test_rows():
    """Costs and needs are those that the values themselves state."""
    rows = {row["attack"]: row for row in table.rows()}
    assert rows["PGD()"]["gradient evaluations"] == str(jr.PGD().total_cost().gradients)
    assert rows["FGSM()"]["random"] == "no" and rows["PGD()"]["random"] == "yes"
    assert rows["FGSM()"]["paper"] == "arXiv:1412.6572"
    for name in ("Square()", "SPSA()"):
        assert rows[name]["access"] == "scores"
        assert rows[name]["gradient evaluations"] == "0"


@pytest.mark.parametrize("row", table.rows(), ids=lambda row: row["attack"])
def test_every_attack_has_a_paper_and_a_cost(row):
    """No cell is empty; every attack names an arXiv number."""
    assert all(row.values())
    assert row["paper"].startswith("arXiv:")
