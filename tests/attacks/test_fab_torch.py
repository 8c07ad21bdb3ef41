"""FAB against the implementation of torchattacks, where that is installed."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from tests.attacks import test_fab as fab

torch = pytest.importorskip("torch")
torchattacks = pytest.importorskip("torchattacks")


class Recorder(torch.nn.Module):
    """The network of `test_fab`, which records where its gradient is taken."""

    def __init__(self):
        super().__init__()
        self.weights = torch.nn.ParameterList(map(torch.tensor, fab.WEIGHTS))
        self.points = []

    def forward(self, images):
        if images.requires_grad:
            self.points.append(images.detach().numpy().reshape(len(images), -1))
        first, second = self.weights
        return torch.tanh((images.flatten(1) - 0.5) @ first) @ second


@fab.each_form
@pytest.mark.parametrize("norm, name", [("linf", "Linf"), ("l2", "L2"), ("l1", "L1")])
def test_iterates_equal_torchattacks(norm, name, targeted):
    """20 steps from `x`: both take the gradient at the same points."""
    model = Recorder()
    attack = torchattacks.FAB(model, norm=name, eps=1e3, steps=21, multi_targeted=True)
    attack.target_class = 2  # the second largest logit, as in TARGETS
    images = torch.tensor(fab.X).reshape(fab.BATCH, 1, 1, -1)
    run = attack.attack_single_run_targeted if targeted else attack.attack_single_run
    run(images, torch.tensor(np.asarray(fab.Y)))
    theirs = np.stack(model.points)
    ours = fab.states(
        jr.FAB(num_steps=20, targeted=targeted),
        fab.MODEL,
        fab.X,
        fab.y_of(targeted),
        fab.KIND[norm](0.1),
        jnp.asarray(fab.X),
    )
    # Float32 on both sides, amplified by 20 steps.
    np.testing.assert_allclose(ours.x_adv, theirs[1:], rtol=0, atol=1e-4)
