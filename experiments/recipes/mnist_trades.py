"""TRADES on MNIST at l_inf 0.3, in a ball that grows.

Command   python -m experiments.train mnist_trades --data-dir DIR

Time      not measured yet; about 30 minutes on 2 cores, as mnist_pgd takes

Expected  not measured yet
"""

import dataclasses

import optax

import jaxrobust as jr
from experiments._recipes import RECIPES

DATASET, EPS = "mnist", 0.3
RECIPE = dataclasses.replace(RECIPES["mnist"].recipe, num_epochs=20, ema_decay=0.999)


def objective(threat: jr.types.Threat, num_steps: int) -> jr.training.Objective:
    """Return TRADES with beta 1, as its authors have it for MNIST; eps grows at first."""
    attack = jr.PGD(
        num_steps=10, rel_step_size=0.25, keep_best=False, loss=jr.losses.kl
    )
    schedule = optax.schedules.linear_schedule(0.0, 1.0, num_steps // 2)
    return jr.training.trades(attack, threat, beta=1.0, eps_schedule=schedule)
