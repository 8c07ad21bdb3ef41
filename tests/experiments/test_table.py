"""The lecture's statements are read off the table as the lecture reads them."""

import pytest

from experiments import table


def columns_of(accuracies, half_width=0.005):
    """A table of made-up accuracies, with intervals of equal width."""
    return {
        training: {
            "cells": {
                row: {"accuracy": a, "low": a - half_width, "high": a + half_width}
                for row, a in zip(table.ROWS, column, strict=True)
            }
        }
        for training, column in accuracies.items()
    }


LECTURE = {
    training: [row[name] / 100 for name in table.ROWS]
    for training, row in table.LECTURE.items()
}


def test_the_lectures_own_table_confirms_all_four_statements():
    """Madry et al.'s figures are the ones that the statements were read from."""
    statements = table.check_statements(columns_of(LECTURE))
    assert len(statements) == 4
    assert all(statement["is_confirmed"] for statement in statements)


@pytest.mark.parametrize(
    ("index", "training", "column"),
    [
        (0, "PGD", [0.873, 0.45, 0.46]),  # FGSM stronger than PGD
        (1, "PGD", [0.873, 0.30, 0.20]),  # below standard training under FGSM
        (2, "FGSM", [0.96, 0.951, 0.0]),  # no label leaking
        (2, "FGSM", [0.903, 0.951, 0.4]),  # FGSM training holds under PGD
        (3, "PGD", [0.953, 0.561, 0.458]),  # natural accuracy does not fall
    ],
)
def test_a_table_that_contradicts_a_statement_does_not_confirm_it(
    index, training, column
):
    """Each statement depends on the cells that it speaks of, and on no others."""
    statements = table.check_statements(columns_of(LECTURE | {training: column}))
    assert [s["is_confirmed"] for s in statements].index(False) == index


def test_overlapping_intervals_are_not_clear():
    """0.953 against 0.952 is an order, not a finding, with intervals of half a point."""
    columns = columns_of(LECTURE | {"PGD": [0.951, 0.561, 0.458]})
    part = table.check_statements(columns)[3]["parts"][1]
    assert part["is_confirmed"]
    assert not part["is_clear"]
