"""Arguments under the names of other libraries are explained."""

import pytest

import jaxrobust as jr


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: jr.PGD(eps=0.3), r"PGD has no argument eps=.*threat=jr.Linf"),
        (lambda: jr.PGD(steps=20), r"PGD has no argument steps=: write num_steps="),
        (lambda: jr.PGD(20), r"no positional arguments.*PGD\(num_steps=20\)"),
        (lambda: jr.PGD(num_step=20), r"did you mean num_steps="),
        (lambda: jr.APGD(n_restarts=5), r"write jr.Restarts\(attack"),
        (lambda: jr.APGD(alpha=0.1), r"APGD has no argument alpha=: .*num_steps"),
        (lambda: jr.Square(n_queries=5), r"write num_queries="),
        (lambda: jr.Linf(0.1, clip_min=0), r"bounds=\(lower, upper\)"),
        (lambda: jr.L2(0.1, None, None, 3), r"takes 3 positional arguments, 4 were"),
        (lambda: jr.Restarts(jr.PGD(), 2, 3, 4), r"takes \d positional"),
    ],
)
def test_names_of_other_libraries(make, message):
    with pytest.raises(TypeError, match=f"(?s){message}"):
        make()
