"""The report: figures from small arrays, files that can be read back."""

import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust._core.citations import bibtex
from jaxrobust.evaluation import _papers, _text
from jaxrobust.evaluation.report import _measured
from jaxrobust.plotting import pictures

Y = np.array([0, 0, 1, 1])
# Correct and robust; correct and broken; wrong; wrong, but right under attack.
PREDICTED = np.array([0, 0, 0, 0])
PREDICTED_ADV = np.array([0, 1, 0, 1])


def make():
    figures = {
        "y": Y,
        "predicted": PREDICTED,
        "predicted_adv": PREDICTED_ADV,
        "num_classes": 3,
        "cost": {"gradients": 4, "forwards": 8},
        "audit": {"outside_ball": 0, "outside_bounds": 0, "not_finite": 0},
        "attacks": ("FGSM()",),
        "broken_by": np.array([-1, 0, -1, -1]),
        "broken_alone": None,
        "groups": None,
        "papers": ("goodfellow2015",),
        "draws": None,
        "draws_adv": None,
        "share_after": None,
        "settings": {"attack": "FGSM()", "threat": "Linf(0.1)", "batch_size": 4},
    }
    for field in dataclasses.fields(jr.Report):
        figures.setdefault(field.name, np.linspace(0, 1, 4, dtype=np.float32))
    return jr.Report(**figures)


def test_accuracies():
    """An example that is wrong from the start is not robust, whatever the attack does."""
    report = make()
    assert report.clean_accuracy == 0.5
    assert report.robust_accuracy == 0.25
    assert report.adversarial_accuracy == 0.5
    np.testing.assert_array_equal(report.is_robust, [True, False, False, False])


def test_per_class():
    """Classes that do not occur have no row: there is no accuracy of nothing."""
    first, second = make().per_class()
    assert first == {
        "class": 0,
        "count": 2,
        "clean_accuracy": 1.0,
        "robust_accuracy": 0.5,
    }
    assert second["clean_accuracy"] == 0.0 and second["count"] == 2


def test_save(tmp_path):
    """JSON holds every figure, npz every example."""
    report = make()
    report.save(tmp_path / "new" / "folder")
    saved = json.loads((tmp_path / "new" / "folder" / "report.json").read_text())
    assert saved["robust_accuracy"] == 0.25
    assert saved["robust_interval"] == pytest.approx(jr.evaluation.wilson(1, 4))
    assert saved["cost"] == {"gradients": 4, "forwards": 8}
    with np.load(tmp_path / "new" / "folder" / "report.npz") as arrays:
        np.testing.assert_array_equal(arrays["predicted_adv"], PREDICTED_ADV)
        np.testing.assert_array_equal(arrays["x_adv"], report.x_adv)


def test_pictures(tmp_path):
    """The bars are the accuracies of the report."""
    report = make()
    report.save(tmp_path)
    for name in ("accuracy", "classes", "confusion"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    bars = pictures._by_attack(report)
    share, low, high = bars["attacked"]["all examples"]
    assert (share, (low, high)) == (0.25, jr.evaluation.wilson(1, 4))
    bars = pictures._by_class(report)
    assert list(bars) == [str(row["class"]) for row in report.per_class()]
    assert bars["0"]["attacked"][0] == 0.5
    # Accuracies of 0 and 1 of many sizes: their intervals end there only by rounding.
    for count in range(1, 40):
        for share in (0.0, 1.0):
            bar = pictures._bar(share, count)
            ax = jr.plotting.accuracy_bars({"all": {"clean": bar}})
            plt.close(ax.figure)
    report.save(tmp_path / "without", pictures=False)
    assert not list((tmp_path / "without").glob("*.png"))


def test_pictures_for_slides_and_papers(tmp_path):
    """Size in pixels, formats, and a title that says what was evaluated and how."""
    report = make()
    report.save(tmp_path, title="digits", formats=("png", "svg"), dpi=100)
    height, width, _ = plt.imread(tmp_path / "accuracy.png").shape
    assert (width, height) == (800, 450)
    svg = (tmp_path / "confusion.svg").read_text()
    assert svg.startswith("<?xml")
    for line in ("digits, 4 examples", "FGSM(), Linf(0.1)"):
        assert f"<!-- {line} -->" in svg  # Matplotlib's comment on text drawn as paths
    with pytest.raises(ValueError, match=r"bmpp.*of .*pdf.*svg"):
        report.save(tmp_path / "wrong", formats=("bmpp",))
    with pytest.raises(ValueError, match="a sequence of names"):
        report.save(tmp_path / "wrong", formats="pdf")
    assert not (tmp_path / "wrong").exists()


def test_titles_of_long_attacks_are_cut():
    """An attack made of many does not push the picture off the page."""
    report = make()
    report.settings["attack"] = "WorstOf((" + "PGD(num_steps=40), " * 50 + "))"
    lines = pictures.heading(report, None, 80).split("\n")
    assert lines[0] == "4 examples"
    assert len(lines) == 5 and lines[-1] == "..."
    assert max(map(len, lines)) <= 80


def test_classes_of_many_are_the_weakest():
    """Two hundred classes: those at the bottom, not all."""
    y = np.arange(400) % 200
    wrong = np.where(y < 60, y + 1, y)  # 0 to 59 are broken
    report = dataclasses.replace(
        make(),
        y=y,
        predicted=y,
        predicted_adv=wrong,
        num_classes=200,
        broken_by=np.zeros(400, int),
    )
    assert set(pictures._by_class(report)) == set(map(str, range(50)))
    text = _text.columns("class", report.per_class())
    assert "the 10 weakest of 200" in text[0]
    assert max(map(len, text)) <= 80


TARGETED = jr.FGSM(loss=jr.losses.targeted(jr.losses.cross_entropy))


@pytest.mark.parametrize(
    ("attack", "threat", "expected"),
    [
        (jr.FGSM(), jr.L1(1.0), {"goodfellow2015"}),
        (jr.Square(), jr.Linf(0.1), {"andriushchenko2020"}),
        (jr.Square(), jr.L1(1.0), {"andriushchenko2020", "croce2021l1"}),
        (jr.Restarts(jr.PGD(), 2), jr.L2(1.0), {"madry2018"}),
        (
            jr.autoattack(),
            jr.L2(1.0),
            {"croce2020autoattack", "croce2020fab", "andriushchenko2020"},
        ),
        (jr.autoattack("rand"), jr.L1(1.0), {"croce2020autoattack", "croce2021l1"}),
        (
            jr.WorstOf((jr.training.NFGSM(), jr.training.RandomTargets(TARGETED))),
            jr.Linf(0.1),
            {"dejorge2022", "kurakin2017", "goodfellow2015"},
        ),
    ],
)
def test_papers(attack, threat, expected):
    """All that an attack is made of is cited, and the paper on evaluation."""
    keys = _papers.papers(attack, threat)
    assert set(keys) == expected | {"carlini2019"}
    assert all(f"{{{key}," in bibtex(keys) for key in keys)


def test_autoattack_has_its_own_name_in_robustbench():
    """Whatever the layout; other versions of it are attacks like any other."""

    def names(attack):
        return _measured({"attack": repr(attack)})

    for axis in ("auto", None, -1, 1):
        assert names(jr.autoattack(channel_axis=axis)) == "autoattack_acc"
        assert names(jr.autoattack("plus", channel_axis=axis)) == "external"
    assert names(jr.Square()) == _measured({}) == "external"


def test_table():
    """The text names the accuracies, their intervals, the cost and the classes."""
    text = str(make())
    assert "50.00%" in text and "25.00%" in text
    assert "4 gradients, 8 forwards" in text
    assert "AUDIT" not in text


def test_audit_is_said_in_sentences():
    """What was found, of how many, and what follows; nothing where nothing was found."""
    report = make()
    report.audit.update(outside_mask=3, logits_not_finite=1, min=0.0, max=1.0)
    text = str(report)
    assert "AUDIT     3 of 4 points are changed where the mask forbids it." in text
    assert "1 predictions are not numbers, and so broken" in text
    assert "Not a robust accuracy for this threat" in text
    assert "{" not in text


def test_confusion_counts_clean_errors_as_such():
    """The example that is wrong and right under attack stays wrong: row 1 is [2, 0, 0]."""
    report = make()
    np.testing.assert_array_equal(report.confusion()[:2], [[1, 1, 0], [2, 0, 0]])
    clean = report.confusion(under_attack=False)
    np.testing.assert_array_equal(clean[:2], [[2, 0, 0], [2, 0, 0]])


@pytest.mark.parametrize("num", [3, 10, 25])
def test_classes_fit_a_terminal(num):
    """No line of the table of classes is longer than 80 columns."""
    rows = [
        {"class": i, "count": 1, "clean_accuracy": 1.0, "robust_accuracy": 1.0}
        for i in range(num)
    ]
    lines = _text.columns("class", rows)
    assert max(map(len, lines)) <= 80
    assert sum(line.count("100.0") for line in lines) == 2 * num
