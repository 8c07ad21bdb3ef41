"""The function forms offer what their classes do, with the same defaults."""

import dataclasses
import inspect
import typing

import pytest

import jaxrobust as jr
from jaxrobust.attacks import functions

FORMS = {
    "fgsm": jr.FGSM,
    "pgd": jr.PGD,
    "apgd": jr.APGD,
    "fab": jr.FAB,
    "square": jr.Square,
    "spsa": jr.SPSA,
}


def test_every_attack_that_takes_steps_has_one():
    """A class without a function form would be missed by those who look for it."""
    classes = {value for value in vars(jr).values() if inspect.isclass(value)}
    simple = {c for c in classes if issubclass(c, jr.attacks.Stepped)} | {jr.FGSM}
    simple -= {jr.ODI}  # takes pairs, and is used inside `Targets`
    assert simple == set(FORMS.values())
    public = {name for name in vars(functions) if name in jr.attacks.__all__}
    assert set(FORMS) <= public


@pytest.mark.parametrize("name", FORMS)
def test_the_settings_are_the_fields(name):
    """Names, defaults and types; and restarts for all."""
    parameters = dict(inspect.signature(getattr(jr, name)).parameters)
    hints = typing.get_type_hints(getattr(jr, name))
    given = ["logits_fn", "x", "y", "threat", "key", "num_restarts"]
    assert list(parameters)[: len(given)] == given
    assert parameters["num_restarts"].default == 1
    fields = dataclasses.fields(FORMS[name])
    assert list(parameters)[len(given) :] == [field.name for field in fields]
    types = typing.get_type_hints(FORMS[name])
    for field in fields:
        assert parameters[field.name].default == field.default
        assert hints[field.name] == types[field.name]
