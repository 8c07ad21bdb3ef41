"""APGD against torchattacks, where it is installed (`pip install torch torchattacks`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr

torch = pytest.importorskip("torch")
torchattacks = pytest.importorskip("torchattacks")

BATCH, FEATURES, CLASSES = 8, 12, 10
rng = np.random.default_rng(0)
W1 = 2 * rng.standard_normal((FEATURES, 16)).astype(np.float32)
W2 = 2 * rng.standard_normal((16, CLASSES)).astype(np.float32)
X = rng.uniform(size=(BATCH, FEATURES)).astype(np.float32)
X[0, :4], X[1, :4] = 0, 1  # corners of the box


def mlp(x):
    return jnp.tanh((x - 0.5) @ W1) @ W2


class Torch(torch.nn.Module):
    """The same network, which remembers where it was evaluated."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))  # tells the device
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().numpy().reshape(BATCH, FEATURES).copy())
        hidden = torch.tanh((x.reshape(BATCH, FEATURES) - 0.5) @ torch.tensor(W1))
        return hidden @ torch.tensor(W2)


@pytest.mark.parametrize(
    "norm, eps, loss",
    [
        ("Linf", 0.05, "ce"),
        ("L2", 0.2, "ce"),
        ("Linf", 0.01, "dlr"),
        ("L2", 0.04, "dlr"),
    ],
)
def test_the_first_20_iterates(norm, eps, loss):
    """100 steps as in AutoAttack, the same start: 20 iterates to 1e-4."""
    y = np.asarray(jnp.argmax(mlp(X), -1))
    model = Torch()
    attack = torchattacks.APGD(model, norm=norm, eps=eps, steps=100, loss=loss)
    torch.manual_seed(1)
    images = torch.tensor(X).reshape(BATCH, 1, 3, 4)
    _, is_robust, _, _ = attack.attack_single_run(images, torch.tensor(y).long())
    expected = np.stack(model.seen)

    threat = {"Linf": jr.Linf, "L2": jr.L2}[norm](eps)
    losses = {"ce": jr.losses.cross_entropy, "dlr": jr.losses.dlr}
    ours = jr.APGD(loss=losses[loss])
    start = jnp.asarray(expected[0])
    state = ours.init(X, jnp.asarray(y), threat=threat, keys=None, start=start)

    def body(state, _):
        return ours.step(mlp, state, threat=threat), state.x_adv

    state, points = jax.jit(lambda s: jax.lax.scan(body, s, length=101))(state)
    np.testing.assert_allclose(points[:21], expected[:21], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(state.best_broken, ~is_robust.numpy())
