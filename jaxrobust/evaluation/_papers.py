"""The papers behind attacks: which to cite for what was used."""

import dataclasses
import importlib.resources
import re
from typing import Any

# Name of the attack's class -> what to cite.
_OF = {
    "FGSM": ("goodfellow2015",),
    "PGD": ("madry2018",),
    "APGD": ("croce2020autoattack",),
    "FAB": ("croce2020fab",),
    "Square": ("andriushchenko2020",),
    "SPSA": ("uesato2018",),
    "AutoAttack": ("croce2020autoattack",),
    "Targets": ("croce2020autoattack",),
}


def papers(attack: Any, threat: Any) -> tuple[str, ...]:
    """Return the keys of the papers of an attack and of all that it is made of."""
    found = dict.fromkeys(_collect(attack, threat))
    # It brought APGD and Square to l_1.
    has_l1_version = {"croce2020autoattack", "andriushchenko2020"} & found.keys()
    if type(threat).__name__ == "L1" and has_l1_version:
        found["croce2021l1"] = None
    found["carlini2019"] = None
    return tuple(found)


def _collect(value: Any, threat: Any) -> list[str]:
    keys = list(_OF.get(type(value).__name__, ()))
    if isinstance(value, tuple | list):
        return [key for item in value for key in _collect(item, threat)]
    if hasattr(value, "stages"):
        return keys + _collect(value.stages(threat=threat), threat)
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            keys += _collect(getattr(value, field.name), threat)
    return keys


def bibtex(keys: tuple[str, ...]) -> str:
    """Return the entries of `references.bib` with these keys."""
    directory = importlib.resources.files("jaxrobust.evaluation")
    text = directory.joinpath("references.bib").read_text()
    entries = {re.split(r"[{,]", e, maxsplit=2)[1]: e for e in text.split("\n\n")}
    return "\n\n".join(entries[key].strip() for key in keys)
