"""A binary model with one output, saturated: the cross-entropy breaks what the margin does.

Digits 3 and 8, a layer of random features and least squares, with logits so large that
p_y - 1 is 0 in float32 for every example: the gradient of the cross-entropy as it is often
written, and all that FGSM and PGD see.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import jaxrobust as jr

pytestmark = pytest.mark.thin

KEY = jax.random.key(0)


def problem():
    digits = load_digits()
    chosen = np.isin(digits.target, (3, 8))
    x = (digits.data[chosen] / 16).astype(np.float32)
    y = (digits.target[chosen] == 8).astype(int)
    hidden = np.random.default_rng(0).normal(size=(64, 100)).astype(np.float32)
    features = np.tanh((x - 0.5) @ hidden)
    weights = np.linalg.lstsq(features, 2.0 * y - 1, rcond=1e-2)[0].astype(np.float32)

    def model(scale, dtype, x):
        z = scale * jnp.tanh((x - 0.5) @ hidden) @ weights
        return jnp.stack([jnp.zeros_like(z), z], -1).astype(dtype)

    return model, x[:100], y[:100]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "make", [jr.FGSM, lambda loss: jr.PGD(num_steps=10, loss=loss)], ids=["fgsm", "pgd"]
)
def test_cross_entropy_breaks_what_the_margin_breaks(make, dtype):
    model, x, y = problem()
    logits_fn = jax.tree_util.Partial(model, 40.0, dtype)
    margins = np.abs(np.asarray(logits_fn(x)[:, 1], np.float32))
    assert np.median(margins) > 30  # e^-30 is far below the 6e-8 of float32
    left = [
        jr.evaluate(
            logits_fn, x, y, attack=make(loss=loss), threat=jr.Linf(0.1), key=KEY
        ).robust_accuracy
        for loss in (jr.losses.cross_entropy, jr.losses.margin)
    ]
    assert left[1] < 0.9
    assert left[0] <= left[1] + 0.01
