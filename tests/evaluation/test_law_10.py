"""Law 10: `evaluate` says of any composition what the attack's own points say.

The reference runs every part of the attack by itself, on all examples at once, and
classifies its points in NumPy. Nothing of the queue, the stages or their order is in it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import jaxrobust as jr

N, D = 6, 4
RNG = np.random.default_rng(0)
X = RNG.uniform(0.1, 0.9, (N, D)).astype(np.float32)
A, B = np.float32(RNG.normal(size=(D, 5)) * 3), np.float32(RNG.normal(size=(5, 12)))
KEY = jax.random.key(0)


def model_of(num_classes):
    """Return a network that computes in float32, whatever its inputs are."""

    def model(x):
        hidden = jnp.tanh((x.astype(jnp.float32) - 0.5) @ A)
        return 4 * hidden @ B[:, :num_classes]

    return model


MODELS = {num: model_of(num) for num in (2, 3, 12)}  # made once, compiled once


def step_back(logits_fn, x, y, *, threat, key=None):
    """A plain function with the signature of an attack."""
    del logits_fn, y, key
    return threat.project(0.5 * x, x)


L = jr.losses
LOSSES = [L.cross_entropy, L.margin, L.dlr, L.targeted(L.cross_entropy), L.kl]
# The divergence from the clean logits is flat at x: who starts there follows rounding.
FROM_X = LOSSES[:-1]
PAIR = L.dlr_targeted
plain = st.one_of(
    st.sampled_from([step_back, jr.FAB(num_steps=3)]),
    st.builds(lambda loss: jr.FGSM(loss=loss), st.sampled_from(FROM_X)),
    st.builds(
        lambda loss, best: jr.PGD(num_steps=3, loss=loss, keep_best=best),
        st.sampled_from(LOSSES),
        st.booleans(),
    ),
    st.builds(lambda loss: jr.APGD(num_steps=4, loss=loss), st.sampled_from(LOSSES)),
    st.builds(
        lambda loss: jr.Square(num_queries=6, loss=loss), st.sampled_from(LOSSES)
    ),
    st.builds(
        lambda loss: jr.SPSA(num_steps=2, num_samples=4, loss=loss),
        st.sampled_from(FROM_X),
    ),
)
wrapped = st.one_of(
    plain,
    st.builds(
        lambda loss: jr.Restarts(jr.PGD(num_steps=3, loss=loss), 2),
        st.sampled_from(LOSSES),
    ),
    st.sampled_from(
        [
            jr.Targets(jr.APGD(num_steps=3, loss=PAIR)),
            jr.Targets(jr.FAB(num_steps=3, targeted=True), 1),
            jr.Restarts(jr.Targets(jr.APGD(num_steps=3, loss=PAIR), 1), 2),
        ]
    ),
)
attacks = st.one_of(
    wrapped, st.builds(lambda a, b: jr.WorstOf((a, b)), wrapped, wrapped)
)
LOW = np.linspace(-0.2, 0.05, N * D, dtype=np.float32).reshape(N, D)
threats = st.builds(
    lambda kind, factor, bounds, mask: kind(factor * 0.3, bounds=bounds, mask=mask),
    st.sampled_from([jr.Linf, jr.L2, jr.L1]),
    st.sampled_from([1.0, np.linspace(0.2, 1.5, N, dtype=np.float32)]),
    st.sampled_from([None, (0.0, 1.0), (0.0, np.inf), (LOW, 1.0), (LOW[0], LOW + 1.0)]),
    st.sampled_from([None, np.arange(D) > 0, np.arange(N * D).reshape(N, D) % 3 > 0]),
)


@dataclasses.dataclass(frozen=True)
class Problem:
    attack: Any
    threat: Any
    inputs: str
    labels: str
    num_classes: int
    batch_size: int

    @property
    def x(self):
        return jnp.asarray(X, self.inputs)

    @property
    def model(self):
        return MODELS[self.num_classes]

    @property
    def clean(self):
        return np.asarray(self.model(self.x))

    @property
    def y(self):
        y = self.clean.argmax(-1)
        y[-1] = (y[-1] + 1) % self.num_classes  # one that is misclassified
        return y

    @property
    def target(self):
        return (self.y + 1) % self.num_classes


problems = st.builds(
    Problem,
    attacks,
    threats,
    st.sampled_from(["float32", "float16", "bfloat16"]),
    st.sampled_from(["int32", "uint8", "int8", "int64"]),
    st.sampled_from(list(MODELS)),
    st.sampled_from([2, N]),
)


def target_of(attack, problem):
    kinds = {L.TARGETS: problem.target, L.LOGITS: problem.clean}
    return kinds.get(getattr(attack, "takes", L.LABELS))


def reference(problem):
    """Return which examples every part's own points leave correct."""
    is_worst_of = isinstance(problem.attack, jr.WorstOf)
    parts = problem.attack.attacks if is_worst_of else (problem.attack,)
    is_robust = problem.clean.argmax(-1) == problem.y
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(N))
    for k, part in enumerate(parts):
        y = target_of(part, problem)
        y = problem.y if y is None else y
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, k) if is_worst_of else keys
        x_adv = part(problem.model, problem.x, y, threat=problem.threat, key=own)
        assert x_adv.dtype == problem.x.dtype
        is_robust &= np.asarray(problem.model(x_adv)).argmax(-1) == problem.y
    return is_robust


def check(problem):
    y = problem.y.astype(problem.labels)
    parts = getattr(problem.attack, "attacks", (problem.attack,))
    takes = {getattr(part, "takes", L.LABELS) for part in parts} - {L.LABELS}
    targets = [t for part in parts if (t := target_of(part, problem)) is not None]
    arguments = dict(
        attack=problem.attack,
        threat=problem.threat,
        key=KEY,
        batch_size=problem.batch_size,
        target=next(iter(targets), None),
    )
    if {L.TARGETS, L.LOGITS} <= takes:  # one target= cannot be classes and logits
        with pytest.raises((TypeError, ValueError)):
            jr.evaluate(problem.model, problem.x, y, **arguments)
        return
    if targets and any(getattr(part, "takes", None) is None for part in parts):
        # A plain function is given the target too, and so another reference.
        return
    report = jr.evaluate(problem.model, problem.x, y, **arguments)
    expected = reference(problem)
    # Two programs round differently: what decides by less than that may differ.
    logits = problem.model(jnp.asarray(report.x_adv))
    is_close = np.abs(np.asarray(L.margin(logits, jnp.asarray(y)))) < 1e-4
    np.testing.assert_array_equal(
        report.is_robust | is_close, expected | is_close, err_msg=str(problem)
    )
    assert report.robust_accuracy == report.is_robust.mean()
    predicted = np.asarray(logits).argmax(-1)
    np.testing.assert_array_equal(report.predicted_adv, predicted)
    names = ("outside_ball", "outside_bounds", "outside_mask", "not_finite")
    assert [report.audit[name] for name in names] == [0] * 4, str(problem)


# No shrinking: every smaller problem compiles its own programs, and all are small.
FEW = dict(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
FEW["phases"] = (Phase.explicit, Phase.generate)


@settings(max_examples=1, **FEW)
@given(problems)
def test_what_is_reported_is_what_the_points_say(problem):
    check(problem)


@pytest.mark.slow
@settings(max_examples=40, **FEW)
@given(problems)
def test_what_is_reported_is_what_the_points_say_of_many(problem):
    check(problem)


@pytest.mark.filterwarnings("ignore:.*no two inputs")
@pytest.mark.parametrize("where", ["ball", "bounds", "mask"])
def test_points_that_the_threat_forbids_are_not_passed_over(where):
    """The audit's violations stand beside the figure and are warned of."""

    def cheat(logits_fn, x, y, *, threat, key=None):
        del logits_fn, y, key
        moved = {"ball": 0.05, "bounds": -2.0, "mask": 0.01}[where]
        return x + moved * (1 if where != "mask" else jnp.arange(D)[None] == 0)

    threat = jr.Linf(0.02 if where == "ball" else 3.0, mask=np.arange(D) > 0)
    with pytest.warns(UserWarning, match="points (lie outside|are changed)"):
        report = jr.evaluate(
            MODELS[3], X, RNG.integers(0, 3, N), attack=cheat, threat=threat
        )
    assert report.audit[f"outside_{where}"] == N
    assert "Not a robust accuracy" in str(report)
