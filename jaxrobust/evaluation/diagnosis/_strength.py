"""Checks of attacks against each other: what must be stronger has to be stronger.

One compiled ascent serves every attack here: its loss, step, number of steps and radius are
traced.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import losses, threats
from jaxrobust._core import batching, predictions, pytree
from jaxrobust._core.programs import straight_through
from jaxrobust.attacks.pgd import PGD
from jaxrobust.evaluation.diagnosis.diagnosis import Check, judged
from jaxrobust.types import Array


@jax.jit
def _ascend(logits_fn, start, x, y, threat, use_margin, rel_step_size, num_steps):
    """Run PGD from `start`; return its best points and whether they are correct."""

    def loss(logits: Array, y: Array) -> Array:
        margin = losses.margin(logits, y)
        return jnp.where(use_margin, margin, losses.cross_entropy(logits, y))

    attack = PGD(
        num_steps=1, rel_step_size=rel_step_size, loss=loss, random_start=False
    )
    state = attack.init(x, y, threat=threat, keys=None, start=start)
    # One step more than needed: it looks at the last point.
    state = jax.lax.fori_loop(
        0,
        num_steps + 1,
        lambda _, state: attack.step(logits_fn, state, threat=threat),
        state,
    )
    found = attack.outcome(state, threat=threat)
    return found.x_adv, ~found.is_broken


@jax.jit
def _predict(logits_fn, x):
    return predictions.predict(logits_fn(x))


@jax.jit
def _search(logits_fn, x, y, threat, keys, num_queries):
    """Random search without gradients: a random sign on random coordinates, if better.

    Andriushchenko et al. 2020 (Square), arXiv:1912.00049, without the squares: inputs need
    not be images. The share of coordinates falls from a half to one coordinate.
    """
    size = x[0].size

    def propose(k: Array, point: Array) -> Array:
        def draw(key: Array) -> Array:
            key_sign, key_place = jax.random.split(jax.random.fold_in(key, k))
            sign = jax.random.rademacher(key_sign, x.shape[1:], x.dtype)
            share = jnp.maximum(0.5 * (1 - k / num_queries), 1 / size)
            share = jnp.where(k == 0, 1.0, share)
            return sign * jax.random.bernoulli(key_place, share, x.shape[1:])

        # Steps of 2 eps cross the ball, to its corners; smaller ones refine.
        step = jnp.asarray(threat.eps) * jnp.where(k % 4 == 3, 0.5, 2.0)
        delta = threat.steepest(jax.vmap(draw)(keys), point, step)
        return threat.project((point + delta).astype(x.dtype), x)

    def query(k: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        point = propose(k, best[0])
        value = losses.margin(logits_fn(point).astype(jnp.float32), y)
        better = value > best[1]
        return batching.where(better, point, best[0]), jnp.where(better, value, best[1])

    value = losses.margin(logits_fn(x).astype(jnp.float32), y)
    return jax.lax.fori_loop(0, num_queries, query, (x, value))[0]


@pytree.register
@dataclasses.dataclass(frozen=True)
class _Surrogate:
    """The model with flat operations let through, averaged over noise in the ball."""

    logits_fn: Callable
    threat: Any
    key: Array
    num_samples: int = pytree.static(4)

    def __call__(self, x: Array) -> Array:
        # Out of the bounds as well: a wall must not bias the mean.
        half = self.threat.with_eps(0.5 * jnp.asarray(self.threat.eps))
        if dataclasses.is_dataclass(half):
            half = dataclasses.replace(cast(Any, half), bounds=None)

        def draw(k: Array) -> Array:
            keys = batching.per_example_keys(jax.random.fold_in(self.key, k), len(x))
            centre = jax.lax.stop_gradient(x)
            noise = half.sample(keys, centre) - centre
            return straight_through(self.logits_fn, x + noise).astype(jnp.float32)

        return jnp.mean(jax.lax.map(draw, jnp.arange(self.num_samples)), 0)


class Runs(NamedTuple):
    """Which examples each attack leaves correct, `[B]` booleans."""

    fgsm: np.ndarray
    pgd: np.ndarray
    more_steps: np.ndarray
    margin: np.ndarray
    half_eps: np.ndarray
    double_eps: np.ndarray
    unbounded: np.ndarray
    search: np.ndarray
    transfer: np.ndarray


def run(logits_fn, x, y, threat, keys, num_steps: int, num_queries: int) -> Runs:
    """Run every attack that the checks compare."""

    def pgd(radius: float = 1.0, *, model=logits_fn, margin=False, steps=num_steps):
        return within(_scaled(threat, radius), model, margin, steps)

    def within(ball: Any, model: Any, margin: bool, steps: int):
        start = ball.sample(keys, x)
        # 2.5 / num_steps: far enough to cross the ball (MadryLab/robustness).
        return _ascend(model, start, x, y, ball, margin, 2.5 / steps, steps)

    def left(points: Array) -> np.ndarray:
        return np.asarray(_predict(logits_fn, points) == y)

    surrogate = _Surrogate(logits_fn, threat, jax.random.fold_in(keys[0], 1))
    results = {
        "fgsm": _ascend(logits_fn, x, x, y, threat, False, 1.0, 1),
        "pgd": pgd(),
        "more_steps": pgd(steps=5 * num_steps),
        "margin": pgd(margin=True),
        "half_eps": pgd(0.5),
        "double_eps": pgd(2.0),
    }
    correct = {name: np.asarray(left) for name, (_, left) in results.items()}
    # Two losses: one of them may saturate on the way.
    everything = threat.with_eps(_farthest(threat, x))
    unbounded = [
        within(everything, logits_fn, margin, 2 * num_steps)[1]
        for margin in (True, False)
    ]
    return Runs(
        unbounded=np.asarray(unbounded[0] & unbounded[1]),
        search=left(_search(logits_fn, x, y, threat, keys, num_queries)),
        transfer=left(pgd(model=surrogate, margin=True)[0]),
        **correct,
    )


def _scaled(threat: Any, factor: float) -> Any:
    return threat.with_eps(factor * threat.eps)


def _farthest(threat: Any, x: Array) -> float:
    """Return a radius at which the ball holds all data."""
    lower, upper = x.min(), x.max()
    if threat.bounds is not None:  # where they are infinite, the data's own
        lowest, highest = threats.bounds_like(threat, x)
        lower = jnp.where(jnp.isfinite(lowest), lowest, lower)
        upper = jnp.where(jnp.isfinite(highest), highest, upper)
    return float(jnp.max(threat.distance(upper + 0 * x, lower + 0 * x)))


def checks(runs: Runs, is_correct: np.ndarray, has_mask: bool) -> list[Check]:
    """Return the checks of what `run` has found; shares are of the correct examples."""
    count = max(int(is_correct.sum()), 1)
    kept = {k: v & is_correct for k, v in runs._asdict().items()}
    share = {name: float(values.sum()) / count for name, values in kept.items()}
    # Two points, as far as they are three examples: less is the luck of the start.
    gap = max(0.02, 3 / count)
    white_box = kept["fgsm"] & kept["pgd"] & kept["margin"] & kept["more_steps"]
    new = {
        name: float((white_box & ~kept[name]).sum()) / count
        for name in ("search", "transfer")
    }
    return [
        judged(
            "fgsm_beats_pgd",
            share["pgd"] - share["fgsm"],
            gap,
            "of the correct examples, withstand PGD minus FGSM: "
            f"{share['pgd']:.1%} - {share['fgsm']:.1%}",
            "one step beats many: the gradient is misleading away from the input; average "
            "it over noise, or use BPDA or a black-box attack",
        ),
        judged(
            "more_steps",
            share["more_steps"] - share["pgd"],
            gap,
            "what five times the steps leave beyond PGD",
            "more steps must not be weaker: the surface is rough or random",
        ),
        judged(
            "larger_eps",
            max(
                share["double_eps"] - share["pgd"],
                share["pgd"] - share["half_eps"],
                0.0,
            ),
            gap,
            "the largest rise of this share from eps / 2 to eps to 2 eps: "
            f"{share['half_eps']:.1%}, {share['pgd']:.1%}, {share['double_eps']:.1%}",
            "a larger ball holds the smaller one: the attack fails to use it",
        ),
        judged(
            "unbounded_eps",
            0.0 if has_mask else share["unbounded"],
            0.05,
            "share that withstands an attack that may change everything (not for masks)",
            "any input can be reached, so the attack has failed: gradients do not lead out "
            "of the neighbourhood",
        ),
        judged(
            # Ten points: on sound models the two losses differ by up to five.
            "logit_loss",
            share["pgd"] - share["margin"],
            max(0.1, gap),
            "what the margin loss breaks beyond the cross-entropy",
            "the cross-entropy is saturated: use loss=jr.losses.dlr or jr.losses.margin",
            warn_above=max(0.05, gap),
        ),
        judged(
            "black_box",
            new["search"],
            gap,
            "share that random search breaks and no gradient attack does",
            "gradients are worse than none: use BPDA, EOT or a black-box attack",
        ),
        judged(
            "transfer",
            new["transfer"],
            gap,
            "share that gradients let through and averaged over noise break, and no other",
            "attack through a surrogate: jr.bpda for what is flat, jr.eot with "
            "jr.transforms.add_noise for what is rough",
        ),
    ]


def robust_accuracy(runs: Runs, is_correct: np.ndarray) -> float:
    """Return the share of all examples that every attack inside the ball leaves."""
    inside = ("fgsm", "pgd", "more_steps", "margin", "half_eps", "search", "transfer")
    left = is_correct.copy()
    for name in inside:
        left &= getattr(runs, name)
    return float(left.mean())
