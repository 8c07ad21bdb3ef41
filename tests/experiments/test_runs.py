"""Settings before work: an output directory belongs to one run."""

import json

import pytest

import jaxrobust as jr
from experiments import (
    _common,
    _runs,
    _training,
    evaluate,
    mnist_fgsm,
    robustness_table,
)

SETTINGS = {"eps": 0.2, "recipe": {"num_epochs": 2, "optimizer": "adam"}}


def claim(out, settings=SETTINGS, restart=False, **options):
    _runs.claim(out, settings, restart=restart, **options)
    return json.loads((out / "config.json").read_text())


def checkpoint(path):
    spec = {"name": "linear", "input_shape": [8, 8, 1], "num_classes": 10, "seed": 0}
    model = jr.models.create(**spec | {"input_shape": (8, 8, 1)})
    jr.training.save_checkpoint(path, model, {"model": spec})


def test_the_same_run_goes_on(tmp_path):
    assert claim(tmp_path / "new") == claim(tmp_path / "new") == SETTINGS


def test_other_settings_are_refused(tmp_path):
    """Every difference is named, and the advice is an option that there is."""
    claim(tmp_path)
    other = {"eps": 0.1, "recipe": {"num_epochs": 3, "optimizer": "adam"}, "seed": 1}
    with pytest.raises(ValueError) as caught:
        claim(tmp_path, other)
    text = str(caught.value)
    assert "eps was 0.2 and is 0.1" in text and "num_epochs was 2 and is 3" in text
    assert "seed was None and is 1" in text and "optimizer" not in text
    assert "--restart" in text and "--out" in text
    assert json.loads((tmp_path / "config.json").read_text()) == SETTINGS


def test_restart_removes_what_the_run_has_written_and_no_more(tmp_path):
    claim(tmp_path)
    for name in ("last", "best"):
        checkpoint(tmp_path / "PGD" / name)
    report = tmp_path / "PGD" / "report_PGD" / "report.json"
    report.parent.mkdir()
    report.write_text("{}")
    notes = tmp_path / "PGD" / "notes.txt"
    notes.write_text("mine")
    assert claim(tmp_path, {"eps": 0.1}, restart=True) == {"eps": 0.1}
    assert list((tmp_path / "PGD").iterdir()) == [notes]


def test_a_run_that_is_over_makes_room(tmp_path):
    """Of an evaluation only the state file is kept for going on."""
    state_file = tmp_path / "state.npz"
    claim(tmp_path, state_file=state_file)
    claim(tmp_path, {"eps": 0.1}, state_file=state_file)
    state_file.write_bytes(b"unfinished")
    with pytest.raises(ValueError, match=r"eps was 0\.1 and is 0\.2"):
        claim(tmp_path, state_file=state_file)
    claim(tmp_path, state_file=state_file, restart=True)
    assert not state_file.exists()


@pytest.mark.parametrize("module", [robustness_table, mnist_fgsm, evaluate])
def test_commands_compare_before_any_work(tmp_path, monkeypatch, module):
    """Another eps in the same --out: nothing is loaded, trained or overwritten."""
    out = ["--out", str(tmp_path)]
    if module is evaluate:
        checkpoint(tmp_path / "best")
        out = [str(tmp_path / "best"), "--dataset", "digits", *out]

    def config(eps):
        arguments = [*out, "--eps", eps]
        if module is robustness_table:
            return robustness_table.parse(arguments)
        return _common.parse(module.Config, "name", None, args=arguments)

    class Work(Exception):
        pass

    def work(*_, **__):
        raise Work

    monkeypatch.setattr(_training, "train", work)
    monkeypatch.setattr(jr, "evaluate", work)
    monkeypatch.setattr(jr.data, "load", lambda *_, load=jr.data.load, **__: load())
    with pytest.raises(Work):
        module.main(config("8/255"))
    if module is evaluate:
        (tmp_path / "state.npz").write_bytes(b"unfinished")

    def files():
        return {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    before = files()
    with pytest.raises(ValueError, match=r"eps was 0\.03.* and is 0\.1.*--restart"):
        module.main(config("0.1"))
    assert files() == before
