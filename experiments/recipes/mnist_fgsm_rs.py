"""FGSM from a random start on MNIST at l_inf 0.3, Wong et al. 2020, arXiv:2001.03994.

Command   python -m experiments.train mnist_fgsm_rs --data-dir DIR

Time      not measured yet

Expected  not measured yet
"""

import dataclasses

import optax

import jaxrobust as jr
from experiments._recipes import RECIPES

DATASET, EPS = "mnist", 0.3
RECIPE = dataclasses.replace(RECIPES["mnist"].recipe, num_epochs=20)


def objective(threat: jr.types.Threat, num_steps: int) -> jr.training.Objective:
    """Return training with FGSM-RS, step 1.25 eps; eps grows over the first half."""
    attack = jr.FGSM(random_start=True, rel_step_size=1.25)
    schedule = optax.schedules.linear_schedule(0.0, 1.0, num_steps // 2)
    return jr.training.adversarial(attack, threat, eps_schedule=schedule)
