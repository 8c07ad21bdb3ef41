"""A small residual network on CIFAR-10 at l_inf 8/255, trained with N-FGSM.

Command   python -m experiments.train cifar10_small --data-dir DIR

Time      not measured yet; hours on 2 cores

Expected  not measured yet
"""

import jaxrobust as jr
from experiments._training import Recipe

DATASET, EPS = "cifar10", 8 / 255
# A cyclic rate, Wong et al. 2020, arXiv:2001.03994; N-FGSM with noise of twice eps, de
# Jorge et al. 2022, arXiv:2202.01181; an average of the weights and smooth labels.
RECIPE = Recipe(
    model="small_resnet",
    model_options={"width": 48},
    num_epochs=30,
    batch_size=128,
    learning_rate=0.2,
    weight_decay=5e-4,
    augment=True,
    ema_decay=0.998,
    num_validation=1000,
)


def objective(threat: jr.types.Threat, num_steps: int) -> jr.training.Objective:
    """Return adversarial training at the points of N-FGSM, with smooth labels."""
    del num_steps
    loss = jr.training.label_smoothing(0.1)
    return jr.training.adversarial(jr.training.NFGSM(), threat, loss)
