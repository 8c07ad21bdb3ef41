"""Texts of settings: short, and equal exactly where the settings are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr


@pytest.mark.parametrize(
    ("eps", "text"),
    [
        (8 / 255, "Linf(8/255)"),
        (0.12549019607843137, "Linf(32/255)"),
        (np.float32(8 / 255), "Linf(8/255)"),
        (jnp.float32(8 / 255), "Linf(8/255)"),
        (jnp.float32(0.1), "Linf(0.1)"),
        (0.2, "Linf(0.2)"),  # 51/255, and not meant so
        (1 / 3, "Linf(0.3333333333333333)"),
        (0.0314, "Linf(0.0314)"),
        (0, "Linf(0)"),
    ],
)
def test_radii(eps, text):
    """As the papers write them."""
    assert repr(jr.Linf(eps)) == text


def test_steps_are_written_like_radii():
    """Threats and attacks share the rule."""
    assert repr(jr.PGD(step_size=2 / 255)) == "PGD(step_size=2/255)"


def test_every_fraction_of_255():
    """It is written as one or is short, and another number never has its text."""
    texts = {k: repr(jr.Linf(k / 255)) for k in range(1, 255)}
    assert len(set(texts.values())) == len(texts)
    assert texts[17] == "Linf(17/255)"
    between = [repr(jr.Linf((k + 1e-4) / 255)) for k in range(1, 255)]
    assert not any("/255" in text for text in between)


def test_a_tuple_of_one():
    """It reads as Python writes it, and can be pasted."""
    attack = jr.WorstOf((jr.FGSM(),))
    assert repr(attack) == "WorstOf((FGSM(),))"
    assert eval(repr(attack), vars(jr)) == attack


def test_large_arrays_are_told_apart():
    """NumPy leaves the middle of a large array out: two masks had one text."""
    masks = [np.ones((28, 28, 1), bool) for _ in range(3)]
    masks[1][14, 14] = False
    first, second, again = (repr(jr.Linf(0.1, mask=mask)) for mask in masks)
    assert first == again != second
    assert first.startswith("Linf(0.1, mask=<bool[28, 28, 1] crc32 ")
    assert repr(jr.Linf(0.1, mask=jnp.asarray(masks[0]))) == first


def test_traced_values_have_a_text():
    """Errors inside `jit` name the threat."""
    texts = []
    jax.jit(lambda eps: texts.append(repr(jr.Linf(eps))))(0.1)
    assert texts == ["Linf(<float32[]>)"]
