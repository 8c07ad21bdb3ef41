"""PGD training on MNIST at l_inf 0.3, in a ball that is a little larger.

Command   python -m experiments.train mnist_pgd --data-dir DIR

Time      TO BE MEASURED

Expected  TO BE MEASURED
"""

import optax

import jaxrobust as jr
from experiments._training import Recipe

DATASET, EPS = "mnist", 0.3
RECIPE = Recipe(
    model="small_convnet",
    num_epochs=30,
    batch_size=100,
    optimizer="adam",
    learning_rate=5e-3,
    ema_decay=0.999,
    num_validation=5000,
)


def objective(threat: jr.types.Threat, num_steps: int) -> jr.training.Objective:
    """Return PGD training; eps grows over the first half of the run."""
    attack = jr.PGD(num_steps=10, rel_step_size=0.25, keep_best=False)
    schedule = optax.schedules.linear_schedule(0.0, 1.1, num_steps // 2)
    return jr.training.adversarial(attack, threat, eps_schedule=schedule)
