"""PreActResNet-18 on CIFAR-10 at l_inf 8/255 by FGSM-RS: "fast is better than free".

Command   python -m experiments.train cifar10_fgsm_rs --data-dir DIR

Time      15 epochs; for a GPU, and not measured by us

Expected  published: 83.3% clean, 43.2% under AutoAttack (RobustBench, Wong2020Fast)
"""

import jaxrobust as jr
from experiments._training import Recipe

DATASET, EPS = "cifar10", 8 / 255
# Wong et al. 2020, arXiv:2001.03994: a cyclic rate up to 0.2, 15 epochs.
RECIPE = Recipe(
    model="preact_resnet18",
    num_epochs=15,
    batch_size=128,
    learning_rate=0.2,
    weight_decay=5e-4,
    augment=True,
    attacked_mode="train",
    num_validation=1000,
)


def objective(threat: jr.types.Threat, num_steps: int) -> jr.training.Objective:
    """Return training with FGSM from a random start and a step of 1.25 eps."""
    del num_steps
    attack = jr.FGSM(random_start=True, rel_step_size=1.25)
    return jr.training.adversarial(attack, threat)
