"""TRADES on the embedded digits at l_inf 0.2: a first run, which needs no data.

Command   python -m experiments.train digits_trades

Time      a minute on 2 cores

Expected  not measured yet
"""

import dataclasses

import optax

import jaxrobust as jr
from experiments._recipes import RECIPES

DATASET, EPS = "digits", 0.2
RECIPE = dataclasses.replace(RECIPES["digits"].recipe, num_validation=200)


def objective(threat: jr.types.Threat, num_steps: int) -> jr.training.Objective:
    """Return TRADES; eps grows over the first half of the run, small networks need it."""
    attack = jr.PGD(
        num_steps=10, rel_step_size=0.25, keep_best=False, loss=jr.losses.kl
    )
    schedule = optax.schedules.linear_schedule(0.0, 1.0, num_steps // 2)
    return jr.training.trades(attack, threat, beta=6.0, eps_schedule=schedule)
