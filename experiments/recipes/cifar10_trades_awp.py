"""PreActResNet-18 on CIFAR-10 at l_inf 8/255: TRADES, AWP and an average of the weights.

Command   python -m experiments.train cifar10_trades_awp --data-dir DIR

Time      100 epochs; for a GPU, and not measured by us

Expected  published for 200 epochs: 82.7% clean, 51.9% under AutoAttack (docs/training.md)
"""

import dataclasses

import jaxrobust as jr
from experiments._recipes import RECIPES

DATASET, EPS = "cifar10", 8 / 255
RECIPE = dataclasses.replace(
    RECIPES["cifar10"].recipe,
    num_epochs=100,
    learning_rate=0.1,
    schedule="step",
    drop_at=0.75,
    ema_decay=0.999,
    num_validation=1000,
)
GRADIENT = jr.training.AWP(0.005)


def objective(threat: jr.types.Threat, num_steps: int) -> jr.training.Objective:
    """Return TRADES with beta 6."""
    del num_steps
    attack = jr.PGD(
        num_steps=10, rel_step_size=0.25, keep_best=False, loss=jr.losses.kl
    )
    return jr.training.trades(attack, threat, beta=6.0)
