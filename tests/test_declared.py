"""What drivers read is declared: in the source, and in every attack."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust._core.citations import arxiv, bibtex
from jaxrobust.attacks import table
from jaxrobust.types import Outcome, Stepped
from tests.test_contract import ATTACKS, KEY, MODEL, THREATS, X, Y
from tests.test_imports import MODULES

pytestmark = pytest.mark.thin

# Where somebody else's value comes in, and is asked what it has.
DOORS = {
    "jaxrobust.attacks._base",
    "jaxrobust.training.objectives",
    "jaxrobust._core.threat_rows",
    "jaxrobust.losses.kinds",
}
PROBE = r"(hasattr|getattr)\(\s*(self\.)?(inner\.|stage\.)?"
PROBE += r"(attack|part|loss|threat|objective)\b"


def test_nothing_is_probed_behind_the_doors():
    """No attack, loss, threat or objective is asked what it has, but there it is."""
    probing = {n for n, path in MODULES.items() if re.search(PROBE, path.read_text())}
    # The settings of PGD are its own: it reads two of them by name.
    assert probing == DOORS | {"jaxrobust.attacks.pgd"}


CLASSES = {
    name: value
    for name, value in vars(jr).items()
    if inspect.isclass(value) and issubclass(value, jr.attacks.Attack)
}


def test_every_attack_is_held_to_the_laws_and_in_the_table():
    """`__all__`, the contract tests, the table and the papers agree."""
    assert set(CLASSES) == set(jr.__all__) & set(CLASSES)
    assert {"PGD", "FAB", "Restarts", "AutoAttack"} <= set(CLASSES)
    in_contract = {type(attack).__name__ for attack in ATTACKS.values()}
    machines = {
        type(attack.machine).__name__
        for attack in ATTACKS.values()
        if isinstance(attack, jr.attacks.Attack)
    }
    in_contract |= machines  # inside `Targets`
    in_contract |= {
        "AutoAttack"
    }  # made of the others; tests/attacks/test_apgd_torch.py
    assert set(CLASSES) <= in_contract
    rows = " ".join(row["attack"] for row in table.rows())
    wrappers = {"Restarts", "WorstOf"}
    missing = {n for n in CLASSES if n.lower() not in rows.lower()} - wrappers
    assert not missing


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"Restarts", "WorstOf"}))
def test_papers_can_be_cited(name):
    keys = CLASSES[name].papers
    assert keys and all(f"{{{key}," in bibtex((key,)) for key in keys)
    assert arxiv(keys[0]).startswith("arXiv:")


def test_a_report_cites_the_attack_of_a_user():
    """Keys of ours and whole entries, of a function too, and inside wrappers."""
    entry = "@misc{me2026, title={Mine}, year={2026}}"

    def mine(logits_fn, x, y, *, threat, key=None):
        return threat.project(0.9 * x, x)

    mine.papers = (entry,)
    attack = jr.WorstOf((mine, jr.FGSM()))
    report = jr.evaluate(MODEL, X, Y, attack=attack, threat=jr.Linf(0.1))
    assert report.papers == (entry, "goodfellow2015", "carlini2019")
    assert entry in report.citation()


STEPPED = {
    name: attack
    for name, attack in ATTACKS.items()
    if isinstance(attack, jr.attacks.Stepped)
    and name not in ("momentum", "adam", "schedule", "margin", "dlr")  # PGD in detail
}


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_contract_of_a_state_machine(name, norm):
    """`init` evaluates nothing, `outcome` has a row for each example, `is_over` comes true.

    And what `outcome` says at the end is what the points say, classified once more.
    """
    attack, threat = STEPPED[name], THREATS[norm]
    assert isinstance(attack, Stepped)
    assert attack.access in ("gradients", "scores", "decisions")
    keys = jax.random.split(KEY, len(X))
    state = attack.init(X, Y, threat=threat, keys=keys)
    assert all(leaf.shape[0] == len(X) for leaf in jax.tree.leaves(state))
    begin = attack.outcome(state, threat=threat)
    assert isinstance(begin, Outcome)
    assert not begin.is_over.any() and not begin.is_broken.any()
    assert np.isinf(begin.distance).all()
    before = attack.scan(MODEL, state, threat, attack.num_calls - 1)
    found = attack.outcome(attack.step(MODEL, before, threat=threat), threat=threat)
    assert found.is_over.all()
    assert not attack.outcome(before, threat=threat).is_over[~found.is_broken].any()
    for value in (found.is_broken, found.score, found.is_over, found.distance):
        assert value.shape == (len(X),)
    assert found.is_broken.dtype == found.is_over.dtype == bool
    # Law 1: what it returns, and where it is, lie in the threat.
    for point in (found.x_adv, attack.iterate(before, threat=threat)):
        assert (threat.distance(point, X) <= threat.eps * (1 + 1e-6)).all()
    reached = jr.losses.is_broken(attack.goal, MODEL(found.x_adv), Y)
    if attack.is_evaluated:
        np.testing.assert_array_equal(found.is_broken, reached)
    assert (reached | ~found.is_broken).all()
    # FAB knows of breaks outside the ball; nobody knows of one where none was found.
    is_near = found.distance <= threat.eps * (1 + 1e-6)
    if attack.is_evaluated or name == "fab":
        np.testing.assert_array_equal(is_near, found.is_broken)


@pytest.mark.parametrize("name", STEPPED)
def test_a_slot_can_be_refilled(name):
    """Law 3: an example that comes in late goes the way that it goes alone, bitwise."""
    attack, threat = STEPPED[name], THREATS["l2"]
    keys = jax.random.split(KEY, len(X))
    is_late = jnp.arange(len(X)) % 2 == 1

    @jax.jit
    def advance(state):
        return attack.step(MODEL, state, threat=threat)

    def start(of_others):
        chosen = jnp.where(is_late[:, None] & of_others, 0.5, X)
        return attack.init(chosen, Y, threat=threat, keys=keys)

    def select(condition, a, b):
        def choose(u, v):
            shape = condition.shape + (1,) * (u.ndim - 1)
            if jnp.issubdtype(u.dtype, jax.dtypes.prng_key):
                data = map(jax.random.key_data, (u, v))
                return jax.random.wrap_key_data(jnp.where(condition[:, None], *data))
            return jnp.where(condition.reshape(shape), u, v)

        return jax.tree.map(choose, a, b)

    late = start(True)  # others sit in every second slot at first
    together = start(False)
    for k in range(attack.num_calls + 2):
        if k == 2:
            late = select(is_late, start(False), late)
        goes_on = is_late | (k < attack.num_calls)
        late = select(goes_on, advance(late), late)
        if k < attack.num_calls:
            together = advance(together)
    for a, b in zip(
        attack.outcome(late, threat=threat),
        attack.outcome(together, threat=threat),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
