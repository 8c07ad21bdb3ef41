"""Weights of our own, trained by the committed recipes: a network in a second."""

import difflib
import hashlib
import importlib.resources
import io
import json
from importlib.resources.abc import Traversable
from typing import Any

import numpy as np
from flax import nnx

from jaxrobust.models import arrays
from jaxrobust.models.registry import create

_DIRECTORY = importlib.resources.files("jaxrobust.models") / "weights"


def _shipped(directory: Traversable) -> tuple[str, ...]:
    files = (file.name for file in directory.iterdir())
    return tuple(sorted(n.removesuffix(".npz") for n in files if n.endswith(".npz")))


SHIPPED: tuple[str, ...] = _shipped(_DIRECTORY)


class Card(dict):
    """What is known of weights; a dict of JSON values that prints as a short text.

    Its entries: name, architecture (arguments of `create`), data, threat, eps, accuracy
    (clean and by attack: accuracy, interval of 95%, num_examples), recipe, command, commit,
    date, sha256 (of the file of the arrays).

    Example:
        >>> accuracy = {"accuracy": 0.985, "interval": [0.98, 0.99], "num_examples": 1000}
        >>> print(Card(
        ...     name="mnist", architecture={"name": "small_convnet"}, data="mnist",
        ...     threat="Linf(0.3)", accuracy={"clean": accuracy},
        ...     command="python -m experiments.train mnist", commit="01234567",
        ...     date="2026-11-28", sha256="f" * 64,
        ... ))
        mnist: small_convnet on mnist, attacked in Linf(0.3)
            clean        98.50%  (98.00% to 99.00%, 1000 examples)
        trained by python -m experiments.train mnist
        commit 0123456, 2026-11-28, sha256 ffffffff
    """

    def __str__(self) -> str:
        """Return the card in a few lines."""
        lines = [
            f"{self['name']}: {self['architecture']['name']} on {self['data']}, attacked "
            f"in {self['threat']}"
        ]
        for name, row in self["accuracy"].items():
            low, high = row["interval"]
            lines.append(
                f"    {name:<10} {row['accuracy']:>8.2%}  ({low:.2%} to {high:.2%}, "
                f"{row['num_examples']} examples)"
            )
        lines.append(f"trained by {self['command']}")
        commit = self["commit"][:7] + self["commit"][40:]  # whether it was changed
        digest = self["sha256"][:8]
        lines.append(f"commit {commit}, {self['date'][:10]}, sha256 {digest}")
        return "\n".join(lines)


def card(name: str, *, _directory: Traversable = _DIRECTORY) -> Card:
    """Return the card of weights of our own: what they are, and what was measured.

    Args:
        name: one of `SHIPPED`.

    Returns:
        A dict; printed, a short text.

    Raises:
        ValueError: if there are no such weights.

    Example:
        >>> all("autoattack" in card(name)["accuracy"] for name in SHIPPED)
        True
    """
    names = _shipped(_directory)
    if name not in names:
        close = difflib.get_close_matches(name, names)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        known = f"take one of {', '.join(names)}" if names else "this version has none"
        raise ValueError(f"there are no weights {name!r}: {known}{hint}")
    return Card(json.loads((_directory / f"{name}.json").read_text()))


def load(name: str, *, _directory: Traversable = _DIRECTORY) -> nnx.Module:
    """Return a network that we have trained, in evaluation mode.

    Args:
        name: one of `SHIPPED`; `print(card(name))` says what it is.

    Returns:
        A Flax NNX module, images [B, H, W, C] in [0, 1] -> logits [B, num_classes].

    Raises:
        ValueError: if there are no such weights, or the files do not belong together.

    Example:
        >>> all(isinstance(load(name), nnx.Module) for name in SHIPPED)
        True
    """
    found = card(name, _directory=_directory)
    content = (_directory / f"{name}.npz").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != found["sha256"]:
        raise ValueError(
            f"{name}.npz is not the file that {name}.json describes: its sha256 is "
            f"{digest[:8]}..., there it is {found['sha256'][:8]}.... Install jaxrobust "
            "again, or publish the weights again."
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        saved = dict(file)
    network = nnx.eval_shape(lambda: create(**found["architecture"]))
    model = arrays.from_arrays(network, saved, source=f"{name}.npz")
    model.eval()
    return model


def to_bytes(model: nnx.Module) -> bytes:
    """Return the content of the .npz file from which `load` makes the network.

    Args:
        model: a network made by `create`.

    Returns:
        The file: the same weights, the same bytes.

    Example:
        >>> model = create("linear", input_shape=(2, 2, 1), num_classes=3)
        >>> len(to_bytes(model)) < 1000
        True
    """
    file = io.BytesIO()
    named: dict[str, Any] = arrays.to_arrays(model)
    np.savez_compressed(file, **named)
    return file.getvalue()
