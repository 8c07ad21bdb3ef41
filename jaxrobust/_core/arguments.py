"""Constructors of the library's values say what is meant by an argument that is not one."""

import difflib
import functools
import re
from typing import Any

# What other libraries call it, and where it is here.
_ELSEWHERE = {
    "eps": "the radius belongs to the threat: threat=jr.Linf(eps)",
    "epsilon": "the radius belongs to the threat: threat=jr.Linf(eps)",
    "norm": "the norm is the threat's class: jr.Linf, jr.L2 or jr.L1",
    "steps": "write num_steps=",
    "n_iter": "write num_steps=",
    "iters": "write num_steps=",
    "alpha": "write step_size=, or rel_step_size= in units of eps",
    "restarts": "write jr.Restarts(attack, num_restarts)",
    "n_restarts": "write jr.Restarts(attack, num_restarts)",
    "num_restarts": "write jr.Restarts(attack, num_restarts)",
    "n_queries": "write num_queries=",
    "clip_min": "the range of valid data belongs to the threat: bounds=(lower, upper)",
    "clip_max": "the range of valid data belongs to the threat: bounds=(lower, upper)",
}


def explained(cls: Any, fields: list[Any]) -> Any:
    """Return the dataclass with an `__init__` that explains what it does not take."""
    generated = cls.__init__
    names = [field.name for field in fields if field.init]
    num_positional = sum(field.init and not field.kw_only for field in fields)

    @functools.wraps(generated)
    def init(self, *args, **settings):
        if len(args) > num_positional:
            named = names[num_positional:] or names
            first = f"{cls.__name__}({named[0]}={args[num_positional]!r})"
            raise TypeError(
                f"{cls.__name__} takes {num_positional or 'no'} positional arguments, "
                f"{len(args)} were given: write their names, as {first}."
            )
        for name in settings:
            if name not in names:
                raise TypeError(message(cls.__name__, name, names))
        generated(self, *args, **settings)

    cls.__init__ = init
    return cls


def message(kind: str, name: str, names: list[str]) -> str:
    """Return what is meant by an argument that is none of these names."""
    near = difflib.get_close_matches(name, names, n=1)
    advice = f"did you mean {near[0]}=?" if near else f"it has {', '.join(names)}"
    elsewhere = _ELSEWHERE.get(name, "")
    written = re.match(r"write (\w+)=", elsewhere)  # of use where that exists
    if elsewhere and (written is None or written[1] in names):
        advice = elsewhere
    return f"{kind} has no argument {name}=: {advice}."
