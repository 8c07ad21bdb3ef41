"""Square against the paper's definitions, written out in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust.attacks.square import windows as windows
from tests.reference import square as reference

pytestmark = pytest.mark.thin


def p_of_the_reference(step, num_queries, rescale):
    """The schedule of the reference implementation, from its table."""
    if rescale:
        step = int(step / num_queries * 10_000)
    for limit, halvings in [(10, 0), (50, 1), (200, 2), (500, 3), (1000, 4)]:
        if step <= limit:
            return 0.8 / 2**halvings
    for limit, halvings in [(2000, 5), (4000, 6), (6000, 7), (8000, 8)]:
        if step <= limit:
            return 0.8 / 2**halvings
    return 0.8 / 512


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("num_queries", [300, 1000, 5000, 10_000])
def test_schedule(num_queries, rescale):
    """The fraction of every query is the reference's."""
    attack = jr.Square(num_queries=num_queries, rescale_schedule=rescale)
    steps = np.arange(num_queries)
    expected = [p_of_the_reference(int(k), num_queries, rescale) for k in steps]
    # Powers of two times 0.8, rounded once.
    np.testing.assert_allclose(attack.fraction(jnp.asarray(steps)), expected, 1e-6)


def test_schedule_at_its_steps():
    """The table of the paper: 0.8 at first, halved after 10, 50, 200, ... queries."""
    steps = jnp.array([0, 10, 11, 50, 51, 200, 500, 1000, 2000, 4000, 4001])
    halvings = [0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7]
    fraction = jr.Square().fraction(steps)
    np.testing.assert_allclose(fraction, 0.8 * 0.5 ** np.array(halvings), 1e-6)


@pytest.mark.parametrize("size", [8, 28, 32, 224])
def test_sides_of_square_images(size):
    """On square images the window is the paper's: round(sqrt(p h w)), at least 1."""
    fractions = 0.8 * 0.5 ** np.arange(10)
    height, width = windows.sides(jnp.asarray(fractions), (size, size, 3))
    expected = [max(round(math.sqrt(p * size * size)), 1) for p in fractions]
    np.testing.assert_array_equal(height, expected)
    np.testing.assert_array_equal(width, expected)


def test_sides_of_long_images_keep_the_area():
    """Where a square is too high, the window is as high as the image, and longer."""
    assert windows.sides(jnp.float32(0.8), (1, 100, 1)) == (1, 80)
    assert windows.sides(jnp.float32(0.8), (100, 1, 1)) == (80, 1)
    assert windows.sides(jnp.float32(0.8), (4, 100, 3)) == (4, 80)
    # 0.01 * 400 pixels: a square of side 2 fits.
    assert windows.sides(jnp.float32(0.01), (4, 100, 3)) == (2, 2)


def test_every_place_is_drawn():
    """A window of 3 in 8 pixels starts at 0..5, the last place included."""
    starts = {-int(windows.place(u, 8, 3)[0]) for u in jnp.arange(0, 1, 1 / 64)}
    assert starts == set(range(6))
    assert int(windows.place(np.float32(1 - 2**-23), 8, 3)[-1]) == 2


def pyramid(height, width, p):
    """The reference's rectangle: boxes around the centre, added one by one."""
    delta = np.zeros((height, width))
    row, column = height // 2, width // 2
    for k in range(max(height // 2, width // 2) + 1):
        rows = slice(max(row - k, 0), row + k + 1)
        columns = slice(max(column - k, 0), column + k + 1)
        delta[rows, columns] += 1 / (k + 1) ** {2: 2, 1: 4}[p]
    return delta / ((np.abs(delta) ** p).sum() or 1) ** (1 / p)


def eta(height, width, p):
    """The paper's eta: a positive pyramid above a negative one, of norm 1."""
    half = height // 2
    delta = np.concatenate([pyramid(half, width, p), -pyramid(height - half, width, p)])
    return delta / (np.abs(delta) ** p).sum() ** (1 / p)


@pytest.mark.parametrize("p", [1, 2])
def test_bump(p):
    """Window by window, at its place, upright and transposed."""
    bump = jax.jit(windows.bump, static_argnums=5)
    for height, width in [(1, 1), (3, 3), (5, 5), (7, 7), (4, 6), (9, 3)]:
        for is_transposed in (False, True):
            rows, columns = np.arange(9) - 0, np.arange(12) - 2
            got = bump(rows, columns, height, width, is_transposed, p)
            expected = np.zeros((9, 12))
            shape = eta(width, height, p).T if is_transposed else eta(height, width, p)
            expected[:height, 2 : 2 + width] = shape
            # Tails of a sum that starts at 1, in float32.
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_start_of_linf_is_stripes():
    """Each column and channel is moved by +eps or -eps as a whole."""
    x = jnp.full((6, 7, 5, 2), 0.5)
    keys = jax.random.split(jax.random.key(0), 6)
    attack = jr.Square()
    state = attack.init(x, jnp.zeros(6, int), threat=jr.Linf(0.25), keys=keys)
    delta = np.asarray(state.proposal - x)
    assert (np.abs(delta) == 0.25).all()
    assert (delta == delta[:, :1]).all()
    assert len(np.unique(delta[:, 0], axis=0)) == 6  # 10 signs each


@pytest.mark.parametrize("p, length", [(2, 28), (1, 32)])
def test_start_of_l2_and_l1_is_five_by_five_tiles(p, length):
    """Each tile is one bump per channel, of norm 1; the border stays as it is."""
    tiles = windows.tiles(jax.random.key(0), (length, length, 2), p)
    side = length // 5
    border = (length - 5 * side) // 2
    inner = np.asarray(tiles)[border : border + 5 * side, border : border + 5 * side]
    expected = eta(side, side, p)
    kinds = [sign * e for sign in (1, -1) for e in (expected, expected.T)]
    seen = set()
    for i in range(5):
        for j in range(5):
            rows, columns = (slice(side * k, side * (k + 1)) for k in (i, j))
            for c in range(2):
                off = [np.abs(inner[rows, columns, c] - kind).max() for kind in kinds]
                assert min(off) < 1e-5  # float32
                seen.add(int(np.argmin(off)))
    assert seen == {0, 1, 2, 3}
    assert np.isclose(np.abs(np.asarray(tiles) ** p).sum(), 50)  # nothing elsewhere


@pytest.mark.parametrize("p, channels", [(2, 2), (1, 3)])
def test_moving_mass(p, channels):
    """What two windows and the unused budget held is in the first; the rest stays.

    For l_1 that times the number of channels, as in the reference.
    """
    key, shape, eps = jax.random.key(3), (8, 9, channels), 2.0
    delta = np.array(jax.random.normal(jax.random.key(1), shape))
    delta *= 1.5 / (np.abs(delta) ** p).sum() ** (1 / p)  # 0.5 of eps unused
    move = jax.jit(windows.move_mass, static_argnums=4)
    moved = np.asarray(move(key, jnp.float32(0.1), jnp.asarray(delta), eps, p))
    changed = (moved != delta).any(-1)
    emptied = changed & (moved == 0).all(-1)
    # p h w = 7.2: two windows of 3 x 3, which overlap here or do not.
    assert 9 <= changed.sum() <= 18 and emptied.sum() == changed.sum() - 9
    held = (np.abs(delta[changed]) ** p).sum(0)
    expected = held + (eps**p - 1.5**p) / channels
    expected *= channels if p == 1 else 1
    # float32 sums of 72 terms.
    np.testing.assert_allclose((np.abs(moved[changed]) ** p).sum(0), expected, 1e-5)


def test_linf_proposals_change_one_window():
    """By 2 eps from one side of the ball to the other, of one sign in each channel."""
    x = jnp.full((64, 8, 8, 3), 0.5)
    keys = jax.random.split(jax.random.key(0), 64)
    attack, threat = jr.Square(num_queries=2, p_init=0.2), jr.Linf(0.25)
    state = attack.init(x, jnp.zeros(64, int), threat=threat, keys=keys)
    logits = jnp.array([[1.0, 0.0]])
    step = jax.jit(
        lambda state: attack.step(lambda x: constant(logits, x), state, threat=threat)
    )
    state = step(state)
    change = np.asarray(state.proposal - state.best)
    assert set(np.unique(change)) == {-0.5, 0.0, 0.5}
    # Stripes that are at the window's side already do not change.
    side = round(math.sqrt(0.2 * 64))
    for example in change:
        for c in range(3):
            rows, columns = np.nonzero(example[:, :, c])
            assert len(np.unique(example[rows, columns, c])) <= 1
            if len(rows):
                assert np.ptp(rows) == side - 1 and np.ptp(columns) < side
    starts = [np.nonzero(e.any((1, 2)))[0][0] for e in change if e.any()]
    assert set(starts) == set(range(8 - side + 1))  # per example, the last included


@pytest.mark.slow
def test_l1_is_as_strong_as_the_reference():
    """On a linear model of three channels, where mass has to change its channel.

    Of the optimum 70% is reached, by the reference 61%; 21% if every window keeps its mass.
    """
    eps, num_queries, num_examples = 3.0, 400, 6
    rng = np.random.default_rng(0)
    grid = np.arange(10) / 10
    waves = [np.outer(np.cos(5 * grid + c), np.sin(4 * grid + 2 * c)) for c in range(3)]
    weights = np.stack(waves) * np.array([1.0, 0.3, 0.1])[:, None, None]
    x = rng.uniform(size=(num_examples, 3, 10, 10))

    def model(x):
        rise = jnp.einsum("bchw,chw->b", x, weights, precision="highest") - 1000
        return jnp.stack([0 * rise, rise], -1)  # class 0 whatever the attack does

    attack = jr.Square(num_queries=num_queries)
    x_adv = attack(
        model,
        jnp.asarray(x, jnp.float32),
        jnp.zeros(num_examples, int),
        threat=jr.L1(eps),
        key=jax.random.key(0),
    )
    reached = np.sum((np.asarray(x_adv, float) - x) * weights, (1, 2, 3))
    expected = []
    for i, example in enumerate(x):
        generator = np.random.default_rng(i)
        found = reference.attack(
            lambda x: np.sum(x * weights) - 1000, example, eps, num_queries, generator
        )
        expected.append(np.sum((found - example) * weights))
    # The shares of the optimum differ by 0.26 from example to example.
    assert reached.mean() > 0.9 * np.mean(expected)


@pytest.mark.parametrize(
    "shape, kind",
    [((7,), jr.L2), ((5, 9, 3), jr.L1), ((1,), jr.L1)]
    + [
        pytest.param(s, k, marks=pytest.mark.slow)
        for s, k in [
            ((5, 9, 3), jr.L2),
            ((2, 2, 1), jr.L2),
            ((1, 1, 3), jr.L2),
            ((1,), jr.L2),
            ((2, 2, 1), jr.L1),
            ((7,), jr.L1),
        ]
    ]
    + [((11, 2), jr.L2), ((5, 9, 3), jr.Linf), ((1,), jr.Linf), ((1, 1, 3), jr.Linf)],
)
def test_any_shape(shape, kind):
    """Odd, narrow and tiny inputs: smaller windows, feasible points, no NaN."""
    threat = kind(0.3)
    x = jax.random.uniform(jax.random.key(0), (3, *shape))
    x = x.at[0].set(0.0)  # at a corner of the box
    keys = jax.random.split(jax.random.key(1), 3)

    def model(x):
        total = x.reshape(len(x), -1).sum(-1)
        return jnp.stack([10 + total, total**2], -1)  # not broken

    attack = jr.Square(num_queries=6, channel_axis="auto" if len(shape) < 3 else -1)
    x_adv = jax.jit(attack.run, static_argnums=0)(
        model, x, jnp.zeros(3, int), threat, keys
    )
    assert x_adv.shape == x.shape and np.isfinite(x_adv).all()
    assert (x_adv >= 0).all() and (x_adv <= 1).all()
    slack = 6e-8 * (1 + x[0].size)  # an ulp of eps and of each coordinate
    assert (threat.distance(x_adv, x) <= 0.3 + slack).all()
    assert (x_adv != x).any()


def constant(logits, x):
    """A model that answers the same to everything."""
    return jnp.broadcast_to(logits, (len(x), 2))


def test_a_broken_example_stays():
    """After success nothing but the counter changes, whatever the model says."""
    x = jnp.full((2, 6), 0.5)
    keys = jax.random.split(jax.random.key(0), 2)
    attack, threat = jr.Square(num_queries=4), jr.Linf(0.1)
    state = attack.init(x, jnp.array([0, 1]), threat=threat, keys=keys)
    step = jax.jit(
        lambda logits, state: attack.step(
            lambda x: constant(logits, x), state, threat=threat
        )
    )
    first = step(jnp.array([[0.0, 1.0]]), state)
    np.testing.assert_array_equal(first.best_broken, [True, False])
    second = step(jnp.array([[0.0, 9.0]]), first)
    np.testing.assert_array_equal(first.step, 1)
    np.testing.assert_array_equal(second.step, 2)
    for name in ("proposal", "best", "best_loss", "best_broken"):
        before, after = getattr(first, name), getattr(second, name)
        np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(second.best[0], state.proposal[0])
    assert (second.proposal[1] != first.proposal[1]).any()


@pytest.mark.parametrize(
    "settings",
    [dict(num_queries=0), dict(num_queries=2.0), dict(p_init=0.0), dict(p_init=2)],
)
def test_misuse(settings):
    """Law 9: the message names the setting."""
    with pytest.raises(ValueError, match=next(iter(settings))):
        jr.Square(**settings)
