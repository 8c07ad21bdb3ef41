"""Expectation over transformations: which expectation, fresh draws, the laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust.attacks.pgd import gradient

pytestmark = [pytest.mark.thin, pytest.mark.usefixtures("no_key_reuse")]

X = jax.random.uniform(jax.random.key(0), (4, 6))
Y = jnp.array([0, 1, 2, 0])
WEIGHTS = 2 * jax.random.normal(jax.random.key(1), (6, 3))
KEY = jax.random.key(2)


def apply(weights, x):
    return jnp.matmul(x, weights, precision="highest")


MODEL = jax.tree_util.Partial(apply, WEIGHTS)


def noise(image, key, sigma=0.3):
    return image + sigma * jax.random.normal(key, image.shape)


NOISE = jax.tree_util.Partial(noise, sigma=0.3)


def draws(num_samples):
    """The logits of each draw with common random numbers, computed one by one."""
    shifts = [noise(0 * X[0], jax.random.fold_in(KEY, s)) for s in range(num_samples)]
    return np.stack([MODEL(X + shift[None]) for shift in shifts])


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.parametrize("average", ["log_probs", "probs", "logits"])
def test_averages(average):
    """Against the definitions, in NumPy, draw by draw."""
    z = draws(5)
    expected = {
        "log_probs": log_softmax(z).mean(0),
        "probs": np.log(np.exp(log_softmax(z)).mean(0)),
        "logits": z.mean(0),
    }[average]
    model = jr.eot(MODEL, NOISE, key=KEY, num_samples=5, average=average, fixed=True)
    np.testing.assert_allclose(model(X), expected, rtol=2e-5, atol=2e-5)  # float32


def test_which_expectation_the_losses_maximise():
    """`negative_log_prob`: E[cross-entropy]; `cross_entropy`: plus a term that is <= 0."""
    z = draws(5)
    mean_ce = np.mean([jr.losses.cross_entropy(jnp.array(s), Y) for s in z], 0)
    options = dict(key=KEY, num_samples=5, fixed=True)
    log_probs = jr.eot(MODEL, NOISE, average="log_probs", **options)(X)
    exact = jr.losses.negative_log_prob(log_probs, Y)
    np.testing.assert_allclose(exact, mean_ce, rtol=1e-5)
    term = jr.losses.cross_entropy(log_probs, Y) - exact
    np.testing.assert_allclose(term, jax.nn.logsumexp(log_probs, -1), atol=1e-6)
    assert (term < -1e-3).all()  # the draws disagree


def test_draws_depend_on_the_example_alone():
    """Law 3: bit for bit, whatever stands beside the example or before it."""
    model = jr.randomized(lambda x, k: MODEL(noise(x, k)), key=KEY, num_samples=3)
    whole = model(X)
    np.testing.assert_array_equal(model(X), whole)
    order = jnp.array([2, 0, 3, 1])
    np.testing.assert_array_equal(model(X[order]), whole[order])
    np.testing.assert_array_equal(model(X.at[1:].set(0.0))[0], whole[0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_moved_example_gets_new_draws(dtype):
    """One coordinate by one ulp, and a swap of two coordinates, change the noise."""
    x = X.astype(dtype)
    constant = jax.tree_util.Partial(lambda x: jnp.zeros((len(x), 3), x.dtype))

    def output(x, fixed=False):
        model = jr.randomized(
            lambda x, k: constant(x) + jax.random.normal(k, (1, 3)),
            key=KEY,
            num_samples=1,
            average="logits",
            fixed=fixed,
        )
        return np.asarray(model(x))

    moved = x.at[0, 3].set(jnp.nextafter(x[0, 3], jnp.ones((), dtype)))
    swapped = x.at[0, :2].set(x[0, 1::-1])
    for other in (moved, swapped):
        assert (output(other)[0] != output(x)[0]).all()
        np.testing.assert_array_equal(output(other)[1:], output(x)[1:])
        np.testing.assert_array_equal(output(other, True), output(x, True))
    negative_zero = jnp.zeros_like(x).at[0, 0].set(-0.0)
    np.testing.assert_array_equal(output(negative_zero), output(jnp.zeros_like(x)))


def test_the_hash_spreads():
    """No two of 4,096 neighbours on a grid of pixel values share their draws."""
    grid = jnp.stack(jnp.meshgrid(*[jnp.arange(8) / 255] * 4), -1).reshape(-1, 4)
    model = jr.randomized(
        lambda x, k: jax.random.normal(k, (1, 2)), key=KEY, num_samples=1
    )
    values = np.asarray(model(grid))
    assert len(np.unique(values[:, 0])) > 4080  # ties of 23-bit uniforms: about 1 pair


def test_arrays_are_traced():
    """A new model and a new key of the same shape compile nothing."""
    count = []

    def transform(image, key, sigma):
        count.append(1)
        return noise(image, key, sigma)

    run = jax.jit(lambda model, x: model(x))
    outputs = []
    for seed, factor in ((2, 1.0), (3, 1.0), (3, 2.0)):
        model = jr.eot(
            jax.tree_util.Partial(apply, factor * WEIGHTS),
            jax.tree_util.Partial(transform, sigma=0.3),
            key=jax.random.key(seed),
            num_samples=2,
        )
        outputs.append(np.asarray(run(model, X)))
    assert len(count) == 1
    assert (outputs[0] != outputs[1]).all() and (outputs[1] != outputs[2]).all()


@pytest.mark.slow
def test_a_replaced_capture_is_seen():
    """Plain functions inside are treated like plain closures: nothing is frozen."""
    state = {"sign": 1.0}

    def transform(image, key):
        return state["sign"] * noise(image, key, 0.1)

    model = jr.eot(MODEL, transform, key=KEY, num_samples=2)
    before = jr.fgsm(model, X, Y, threat=jr.Linf(0.1))
    state["sign"] = -1.0
    after = jr.fgsm(model, X, Y, threat=jr.Linf(0.1))
    assert (before != after).any()


def test_an_attack_reaches_the_optimum_of_the_expectation():
    """Law 2: the mean logits of a linear model under zero-mean noise are its own."""
    weights = WEIGHTS[:, :2]
    model = jr.eot(
        jax.tree_util.Partial(apply, weights), NOISE, key=KEY, average="logits"
    )
    y = jnp.array([0, 1, 1, 0])
    threat = jr.Linf(0.1)
    # The last iterate: "the best" would be the one of the luckiest draws.
    attack = jr.PGD(num_steps=10, random_start=False, keep_best=False)
    x_adv = attack(model, X, y, threat=threat)
    best, _ = jr.certify.linear_worst_case(weights, jnp.zeros(2), X, y, threat=threat)
    np.testing.assert_allclose(x_adv, best, atol=1e-6)


def test_misuse():
    """Each message says what is needed."""
    with pytest.raises(ValueError, match="whole number"):
        jr.eot(MODEL, NOISE, key=KEY, num_samples=0)
    with pytest.raises(ValueError, match="one of"):
        jr.eot(MODEL, NOISE, key=KEY, average="mean")
    with pytest.raises(ValueError, match="num_deployed=0"):
        jr.eot(MODEL, NOISE, key=KEY, num_deployed=0)
    with pytest.raises(TypeError, match="is not a PRNG key"):
        jr.randomized(MODEL, key=0)
    with pytest.raises(TypeError, match="one PRNG key is needed"):
        jr.randomized(MODEL, key=jax.random.split(KEY))
    with pytest.raises(TypeError, match=r"expected\(targeted"):
        jr.losses.targeted(jr.losses.expected(jr.losses.margin))


def test_keys_of_the_older_kind():
    """A uint32 key gives the draws of the typed key that it stands for."""
    typed, older = (
        jr.randomized(lambda x, k: noise(x, k), key=key, num_samples=2)
        for key in (jax.random.key(7), jax.random.PRNGKey(7))
    )
    np.testing.assert_array_equal(typed(X), older(X))


@pytest.mark.slow
@pytest.mark.parametrize("mark", [jr.plain_convolutions, jr.fast_convolutions])
def test_the_loss_of_each_draw(mark):
    """Value and gradient of `expected` are means over the draws, one by one."""
    model = mark(jr.eot(MODEL, NOISE, key=KEY, num_samples=5, fixed=True))
    for loss in (jr.losses.cross_entropy, jr.losses.dlr):

        def mean(x, loss=loss):
            each = [loss(jnp.array(s) + MODEL(x) - MODEL(X), Y) for s in draws(5)]
            return sum(each) / 5

        found = gradient(jr.losses.expected(loss), model, X, Y)
        np.testing.assert_allclose(found.loss, mean(X), rtol=1e-4)
        exact = jax.grad(lambda x, mean=mean: mean(x).sum())(X)
        scale = found.scale[:, None]
        np.testing.assert_allclose(scale * found.direction, exact, rtol=1e-3, atol=1e-5)
    # Targets and the target of a pair go the same way; plain models have one draw.
    loss = jr.losses.expected(jr.losses.targeted(jr.losses.margin))
    assert loss.takes == jr.losses.TARGETS
    plain = gradient(jr.losses.expected(jr.losses.margin), MODEL, X, Y)
    np.testing.assert_allclose(plain.loss, jr.losses.margin(MODEL(X), Y), rtol=1e-6)


LOSS, MARGIN = jr.losses.cross_entropy, jr.losses.margin
EXPECTED = jr.losses.expected(LOSS)


@pytest.mark.parametrize(
    ("average", "loss", "left"),
    [
        ("probs", LOSS, 0.5),
        ("log_probs", EXPECTED, 0.5),
        ("log_probs", LOSS, 1.0),
        ("logits", MARGIN, 1.0),
    ],
)
def test_the_default_is_the_stronger_one(average, loss, left):
    """Two linear models at random, the surer one out of reach: it must not count more."""
    weights = jnp.array([[10.0, 0.0], [0.0, 1.0]])

    def model_fn(x, key):
        score = x @ weights[jax.random.bernoulli(key).astype(int)]
        return jnp.stack([score, -score], -1)

    model = jr.randomized(model_fn, key=KEY, average=average)
    x, y = jnp.array([[1.0, 0.3]]), jnp.array([0])
    attack = jr.PGD(num_steps=20, loss=loss, random_start=False, keep_best=False)
    x_adv = attack(model, x, y, threat=jr.L2(0.4, bounds=None))
    assert np.mean(x_adv @ weights > 0) == left
    assert jr.randomized(model_fn, key=KEY).average == "probs"
