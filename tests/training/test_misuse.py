"""What `fit` says to what it cannot train on, whatever the objective."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrobust as jr
from jaxrobust import training
from tests.training.killed_run import KEY, cross_entropy

X = np.linspace(0, 1, 48, dtype=np.float32).reshape(8, 6)
Y = np.arange(8) % 3


def own(trained_fn, attacked_fn, x, y, *, key, step):
    """A user's own objective."""
    return cross_entropy(trained_fn(x), y), {}


class Own:
    """One with a threat."""

    def __init__(self, threat):
        self.threat = threat

    def __call__(self, *args, **kwargs):
        return own(*args, **kwargs)


OBJECTIVES = [own, training.standard(), Own(jr.Linf(0.1))]


def fit(objective=own, x=X, y=Y, model=None, **options):
    options = dict(batch_size=4, num_epochs=1, key=KEY, progress=False) | options
    model = model or nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    return training.fit(model, objective, optax.sgd(0.1), x, y, **options)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("label", [-1, 3])
def test_labels_that_are_no_classes(objective, label):
    with pytest.raises(ValueError, match="the model has 3 classes"):
        fit(objective, y=np.where(Y == 1, label, Y))
    with pytest.raises(ValueError, match="the model has 3 classes"):
        fit(objective, validation=(X, np.where(Y == 1, label, Y)))


class Returns(nnx.Module):
    """A model that returns something of its logits."""

    def __init__(self, what):
        self.linear = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
        self.what = what

    def __call__(self, x):
        return self.what(self.linear(x))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    "what", [lambda z: (z, z), lambda z: z[:, :1], lambda z: z[:, 0], lambda z: z[0]]
)
def test_a_model_that_returns_no_logits(objective, what):
    with pytest.raises((TypeError, ValueError), match="is needed") as error:
        fit(objective, model=Returns(what))
    assert "whatever the objective" in "".join(error.value.__notes__)


@pytest.mark.parametrize(
    "result, message",
    [
        (
            lambda z: z.mean(),
            r"an array of shape \(\), type float32; \(loss, metrics\)",
        ),
        (lambda z: (z.mean(), None), "a NoneType as its metrics"),
        (
            lambda z: (z.sum(-1), {}),
            r"shape \(4,\), type float32 as its loss; a scalar",
        ),
        (lambda z: (z.argmax(), {}), "type int32 as its loss"),
        (lambda z: (z.mean(), {"hits": z[:, 0]}), r"'hits' of shape \(4,\)"),
        (lambda z: None, "a NoneType; "),
    ],
)
def test_what_an_objective_returns(result, message):
    def objective(trained_fn, attacked_fn, x, y, *, key, step):
        return result(trained_fn(x))

    with pytest.raises((TypeError, ValueError), match=message):
        fit(objective)


def test_misuse_is_found_before_an_earlier_run_is_removed(tmp_path):
    fit(out=tmp_path)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(TypeError, match="is needed"):
        fit(lambda *args, **kwargs: None, out=tmp_path, resume=False)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


class Images(nnx.Module):
    """Channels last, as Flax has them."""

    def __init__(self):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
        self.linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.linear(self.conv(x).mean((1, 2)))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_channels_first(objective):
    x = np.zeros((8, 3, 6, 6), np.float32)
    with pytest.raises(ValueError, match=r"x\.transpose\(0, 2, 3, 1\)"):
        fit(objective, x, model=Images())
    fit(objective, x.transpose(0, 2, 3, 1), model=Images())


@pytest.mark.parametrize(
    "x, kind",
    [
        ((batch for batch in X), "generator"),
        (types.SimpleNamespace(__iter__=lambda: iter(X)), "SimpleNamespace"),
        (iter([X]), "list_iterator"),
        ({"x": X}, "dict"),
    ],
)
def test_something_that_gives_batches(x, kind):
    with pytest.raises(TypeError, match=rf"x is a {kind}; fit draws its batches"):
        fit(x=x)
    with pytest.raises(TypeError, match=rf"validation is a {kind}; fit draws"):
        fit(validation=(x, Y))


@pytest.mark.parametrize("validation", [X, "test", (X,), (X, Y, Y)])
def test_validation_is_a_pair(validation):
    with pytest.raises(TypeError, match=r"validation=\(x_val, y_val\)"):
        fit(validation=validation)


def noisy(x, key):
    return x + 0.01 * jax.random.normal(key, x.shape)


def mirrored(x, key):
    return x[:, ::-1]


@pytest.mark.parametrize("augment", [noisy, mirrored])
def test_augment_with_exchanged_arguments(augment):
    with pytest.raises(TypeError, match=r"fit calls augment\(key, x\).*exchange"):
        fit(augment=augment)
    fit(augment=lambda key, x: augment(x, key))


@pytest.mark.parametrize(
    "augment", [lambda key, x: key, lambda key, x: (x, x), lambda key, x: x[:2]]
)
def test_augment_that_returns_no_batch(augment):
    with pytest.raises(TypeError, match="a batch of 4 examples is needed"):
        fit(augment=augment)


def test_an_error_inside_augment_is_its_own():
    def augment(key, x):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fit(augment=augment)


@pytest.mark.parametrize("owner", [Own, lambda t: training.adversarial(jr.FGSM(), t)])
def test_data_outside_the_bounds(owner):
    with pytest.raises(ValueError, match=r"x / scale has values in \[-1,"):
        fit(owner(jr.Linf(0.1)), X - 1)
    with pytest.raises(ValueError, match="validation / scale has values"):
        fit(validation=(X + 1, Y), validation_attack=jr.FGSM(), threat=jr.Linf(0.1))


def test_bounds_of_a_channel_are_checked_by_channel():
    """The widest of them would let this pass."""
    x = np.full((8, 2, 2, 3), 0.5, np.float32)
    bounds = (0.0, np.array([1.0, 0.4, 1.0]))
    with pytest.raises(ValueError, match="outside the bounds"):
        fit(Own(jr.Linf(0.1, bounds=bounds)), x, model=Images())


@pytest.mark.parametrize("owner", [Own, lambda t: training.adversarial(jr.FGSM(), t)])
@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(mask=np.ones((8, 6))), r"mask of .* shape \(8, 6\).*shuffled"),
        (dict(mask=np.ones((4, 6))), r"mask of .* shape \(4, 6\).*shuffled"),
        (dict(bounds=(np.zeros((8, 6)), 1.0)), r"lower bound of .*\(8, 6\).*shuffled"),
        (dict(bounds=(0.0, np.ones((8, 6)))), "upper bound of .*shuffled"),
        (dict(eps=np.full(8, 0.1)), r"eps of .* shape \(8,\), one for each example"),
        (dict(mask=np.ones(5)), r"mask of .* shape \(5,\)"),
    ],
)
def test_what_belongs_to_an_example(owner, settings, message):
    threat = jr.Linf(**dict(eps=0.1) | settings)
    with pytest.raises(ValueError, match=message):
        fit(owner(threat))
    if "mask" not in settings or len(settings["mask"]) != 5:
        return
    with pytest.raises(ValueError, match="the mask of threat has shape"):
        fit(validation=(X, Y), validation_attack=jr.FGSM(), threat=threat)


@pytest.mark.parametrize("shape", [(4, 5), (5, 3), (4, 5, 2), (2, 4, 5, 3)])
def test_a_mask_that_only_happens_to_broadcast(shape):
    """Of images [4, 5, 3]: a mask of rows and columns needs its third axis."""
    x = np.zeros((8, 4, 5, 3), np.float32)
    objective = training.adversarial(jr.FGSM(), jr.Linf(0.1, mask=np.ones(shape)))
    with pytest.raises(ValueError, match=r"Examples have shape \(4, 5, 3\)"):
        fit(objective, x, model=Images())


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4, 5, 1), (1, 1, 3), (4, 5, 3)])
def test_a_mask_of_an_example(shape):
    from jaxrobust.training._data_checks import check_threat_shapes

    threat = jr.Linf(jnp.array([0.1]), mask=np.ones(shape))
    check_threat_shapes("threat", threat, (4, 5, 3))
