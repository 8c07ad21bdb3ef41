"""A run is resumed by what computes the same, and by nothing else."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrobust as jr
from jaxrobust import training
from jaxrobust.training import storage
from tests.training import killed_run
from tests.training.killed_run import data

pytestmark = pytest.mark.thin

X, Y = data(16)
THREAT = jr.Linf(0.05, bounds=None)


def objective(factor=1.0, **options):
    """Adversarial training with closures in it."""

    def loss(logits, y):
        return factor * jr.losses.cross_entropy(logits, y)

    return training.adversarial(jr.FGSM(), THREAT, loss=loss, **options)


def augment(size):
    return lambda key, x: x + size * jax.random.normal(key, x.shape)


def shift(factor):
    def attack(logits_fn, x, y, *, threat, key):
        return x + factor * threat.eps

    return attack


class Net(nnx.Module):
    """A model with a setting that no array shows."""

    def __init__(self, slope=0.1):
        self.hidden = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
        self.out = nnx.Linear(4, 3, rngs=nnx.Rngs(1))
        self.slope = slope

    def __call__(self, x):
        return self.out(nnx.leaky_relu(self.hidden(x), self.slope))


def run(out, num_epochs=1, **changes):
    """Train; everything that `changes` names is the same by its text."""
    parts = dict(
        model=Net(),
        objective=objective(eps_schedule=optax.linear_schedule(0.0, 1.0, 10)),
        optimizer=optax.sgd(optax.linear_schedule(0.1, 0.0, 50)),
        augment=augment(0.01),
        validation=(X, Y),
        validation_attack=shift(1.0),
        threat=THREAT,
    )
    options = dict(batch_size=8, key=jax.random.key(0), progress=False, out=out)
    parts |= changes
    args = [parts.pop(name) for name in ("model", "objective", "optimizer")]
    return training.fit(*args, X, Y, num_epochs=num_epochs, **parts, **options)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of one epoch."""
    out = tmp_path_factory.mktemp("begun")
    run(out)
    return out


def linear(*args):
    return optax.linear_schedule(*args)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(optimizer=optax.sgd(linear(0.2, 0.0, 50))), "another optimizer"),
        (dict(optimizer=optax.sgd(linear(0.1, 0.0, 51))), "another optimizer"),
        (dict(optimizer=optax.adam(0.1)), "another optimizer: .*learning rate"),
        (dict(augment=augment(0.02)), "another augmentation"),
        (
            dict(objective=objective(eps_schedule=linear(0.0, 1.0, 11))),
            "another training step: the objective",
        ),
        (
            dict(objective=objective(2.0, eps_schedule=linear(0.0, 1.0, 10))),
            "another training step",
        ),
        (dict(model=Net(slope=0.2)), "another training step.*or the model"),
        (dict(validation_attack=shift(0.5)), "another validation"),
    ],
)
def test_other_programs_are_refused(begun, changes, message):
    """Before, all of these went on, or were called another architecture."""
    with pytest.raises(ValueError, match=message) as error:
        run(begun, 2, **changes)
    assert "architecture" not in str(error.value)
    assert "resume=False" in str(error.value)


def test_the_learning_rate_in_the_state_of_the_optimiser(tmp_path):
    """`inject_hyperparams` keeps it there, and the checkpoint would bring back the old."""

    def optimizer(rate):
        return optax.inject_hyperparams(optax.sgd)(learning_rate=rate)

    run(tmp_path, optimizer=optimizer(0.1))
    with pytest.raises(ValueError, match="another optimizer"):
        run(tmp_path, 2, optimizer=optimizer(0.2))


def test_new_objects_of_the_same_settings_go_on(begun, tmp_path):
    """Other closures, another process's addresses, more epochs."""
    run(tmp_path)
    resumed = run(tmp_path, 2)
    assert [line["epoch"] for line in resumed.history] == [1, 2]
    programs = [
        storage.read_info(path / "last")["run"]["programs"]
        for path in (begun, tmp_path)
    ]
    assert programs[0] == programs[1]
    assert [*programs[0]] == [
        "optimizer",
        "augmentation",
        "training step",
        "validation",
    ]


def test_a_digest_of_another_version_says_so(begun, monkeypatch):
    """Then nobody knows whether it is another program."""
    info = storage.read_info(begun / "last")
    info["versions"]["jax"] = "0.9.9"
    monkeypatch.setattr(storage, "read_info", lambda path: info)
    run(begun, 1)  # the same program all the same
    with pytest.raises(ValueError, match=r"jax was 0\.9\.9 and is"):
        run(begun, 2, optimizer=optax.adam(0.1))


@pytest.mark.slow
def test_functions_of_the_host_are_not_resumed(tmp_path):
    """They cannot be known; what only looks is no obstacle."""

    def on_host(key, x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: np.asarray(x), shape, x)

    run(tmp_path / "host", augment=on_host)
    with pytest.raises(ValueError, match=r"cannot be resumed.*augmentation calls"):
        run(tmp_path / "host", 2, augment=on_host)
    run(tmp_path / "host", 1, augment=on_host, resume=False)

    def looking(key, x):
        jax.debug.callback(lambda x: None, x.sum())
        return x

    run(tmp_path / "debug", augment=looking)
    assert len(run(tmp_path / "debug", 2, augment=looking).history) == 2


def test_a_legacy_key_is_the_same_key(tmp_path):
    """`jax.random.PRNGKey(seed)` is taken, and goes on where the typed key began."""
    options = dict(batch_size=8, num_epochs=1, out=tmp_path, progress=False)
    results = [
        training.fit(
            Net(), killed_run.objective, optax.sgd(0.1), X, Y, key=key, **options
        )
        for key in (jax.random.PRNGKey(5), jax.random.key(5))
    ]
    assert results[0].history == results[1].history
