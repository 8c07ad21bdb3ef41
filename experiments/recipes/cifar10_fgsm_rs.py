"""PreActResNet-18 on CIFAR-10 at l_inf 8/255 by FGSM-RS: "fast is better than free".

Command   python -m experiments.train cifar10_fgsm_rs --data-dir DIR

Time      15 epochs; for a GPU, and not measured by us

Expected  published: 83.3% clean, 43.2% under AutoAttack (RobustBench, Wong2020Fast)
"""

import dataclasses

import jaxrobust as jr
from experiments._recipes import RECIPES

DATASET, EPS = "cifar10", 8 / 255
# Wong et al. 2020, arXiv:2001.03994: a cyclic rate up to 0.2, 15 epochs.
RECIPE = dataclasses.replace(
    RECIPES["cifar10"].recipe, num_epochs=15, attacked_mode="train", num_validation=1000
)


def objective(threat: jr.types.Threat, num_steps: int) -> jr.training.Objective:
    """Return training with FGSM from a random start and a step of 1.25 eps."""
    del num_steps
    attack = jr.FGSM(random_start=True, rel_step_size=1.25)
    return jr.training.adversarial(attack, threat)
