"""PreActResNet-18 on CIFAR-10 at l_inf 8/255 by PGD-10.

Command   python -m experiments.train cifar10_pgd --data-dir DIR

Time      30 epochs; for a GPU, and not measured by us

Expected  published for 200 epochs: 83.3% clean, 47.6% under AutoAttack (docs/training.md)
"""

import dataclasses

import jaxrobust as jr
from experiments._recipes import RECIPES

DATASET, EPS = "cifar10", 8 / 255
RECIPE = dataclasses.replace(RECIPES["cifar10"].recipe, num_validation=1000)


def objective(threat: jr.types.Threat, num_steps: int) -> jr.training.Objective:
    """Return PGD training, steps of 2/255 as Madry et al. 2018 have them."""
    del num_steps
    attack = jr.PGD(num_steps=10, rel_step_size=0.25, keep_best=False)
    return jr.training.adversarial(attack, threat)
