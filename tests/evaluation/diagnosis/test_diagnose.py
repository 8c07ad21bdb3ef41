"""The diagnosis: every planted defence is flagged and broken, no sound model is flagged."""

import importlib.util
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust.evaluation.diagnosis.diagnosis import judged

pytestmark = pytest.mark.thin


def load_planted():
    """Import the file beside this one, once, under importlib's import mode too."""
    path = pathlib.Path(__file__).with_name("planted.py")
    spec = importlib.util.spec_from_file_location("planted_defences", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


planted = load_planted()

# What must be found, at the least: the cause, not only its consequences.
CAUSES = {
    "quantised": {"program", "zero_gradients"},
    "thermometer": {"program", "zero_gradients"},
    "jpeg": {"program", "zero_gradients"},
    "shattered": {"loss_surface"},
    "nan_gradient": {"finite_gradients"},
    "saturated": {"saturated_outputs", "zero_gradients", "logit_loss"},
    "temperature": {"saturated_outputs", "zero_gradients", "logit_loss"},
    "softmax": {"softmax_outputs"},
    "rounded_logits": {"program", "zero_gradients"},
    "stop_gradient": {"finite_differences", "transfer"},
    "random_resize": {"random_outputs"},
    "dropout": {"random_outputs"},
    "k_winners": {"black_box"},
    "host_noise": {"random_outputs"},
}


def accuracy(model, x):
    return float((np.asarray(model(x)).argmax(-1) == planted.data().y).mean())


def attacked(attack, model):
    data = planted.data()
    return attack(model, data.x, data.y, threat=planted.THREAT, key=planted.KEY)


@pytest.mark.slow
def test_the_undefended_network_breaks():
    """The yardstick: 4% on the first 120 test images."""
    model = planted.train()
    assert accuracy(model, planted.data().x) > 0.97
    assert accuracy(model, attacked(planted.PGD, model)) < 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:logits_fn seems to return probabilities")
@pytest.mark.parametrize("name", planted.PLANTED)
def test_a_planted_defence_is_flagged_and_broken(name):
    """The right attack leaves less than a quarter, of 75% to 99% on clean images."""
    data, defence = planted.data(), planted.PLANTED[name]()
    diagnosis = jr.diagnose(
        defence.model, data.x, data.y, threat=planted.THREAT, key=planted.KEY
    )
    assert CAUSES[name] <= set(diagnosis.flagged), str(diagnosis)
    assert diagnosis.accuracy > 0.7
    judge = defence.judge or defence.model
    assert accuracy(judge, attacked(defence.attack, defence.surrogate)) < 0.25


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quantised", "saturated", "shattered", "k_winners"])
def test_what_looked_robust(name):
    """PGD with cross-entropy leaves about half: what the claim would have been."""
    defence = planted.PLANTED[name]()
    assert (
        accuracy(defence.model, attacked(planted.PGD, defence.model)) > 0.4
    )  # rounding chooses winners


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "shattered",
        pytest.param("quantised", marks=pytest.mark.exhaustive),
        pytest.param("stop_gradient", marks=pytest.mark.exhaustive),
    ],
)
def test_the_fast_evaluation_is_not_fooled_more(name):
    """Than the standard one; 2 of 120 examples are luck."""
    data, model = planted.data(), planted.PLANTED[name]().model
    left = [
        jr.evaluate(
            model,
            data.x,
            data.y,
            attack=jr.autoattack(version),
            threat=planted.THREAT,
            key=planted.KEY,
        ).is_robust.sum()
        for version in ("fast", "standard")
    ]
    assert left[0] <= left[1] + 2 < 15


@pytest.mark.slow
@pytest.mark.parametrize("name", planted.SOUND)
def test_a_sound_model_is_not_flagged(name):
    """No check fails, none warns."""
    make, num_classes = planted.SOUND[name]
    data = planted.data()
    used = np.asarray(data.y < num_classes)
    diagnosis = jr.diagnose(
        make(), data.x[used], data.y[used], threat=planted.THREAT, key=planted.KEY
    )
    assert diagnosis.flagged == () and diagnosis.warnings == (), str(diagnosis)
    assert "nothing speaks against" in str(diagnosis)


X = jax.random.uniform(jax.random.key(0), (24, 5))
WEIGHTS = jax.random.normal(jax.random.key(1), (5, 3))


def linear(x):
    return jnp.matmul(x, WEIGHTS, precision="highest")


Y = linear(X).argmax(-1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "threat",
    [jr.L2(0.1), jr.L1(0.2, bounds=None), jr.Linf(0.1, mask=np.array([1, 1, 0, 0, 0]))],
    ids=["l2", "l1 without bounds", "masked"],
)
def test_other_threats(threat):
    """A linear model passes under every threat; the attacks are exact."""
    diagnosis = jr.diagnose(linear, X, Y, threat=threat, key=jax.random.key(0))
    assert diagnosis.flagged == (), str(diagnosis)
    _, worst = jr.certify.linear_worst_case(WEIGHTS, jnp.zeros(3), X, Y, threat=threat)
    left = round(diagnosis.robust_accuracy * len(X))
    exact = int((worst < 0).sum())
    assert exact <= left <= exact + 2  # an upper bound, and close


@pytest.mark.slow
def test_neighbours_and_broken_outputs():
    """Batch statistics and NaN logits are found, and the summary is JSON."""

    def model(x):
        logits = linear(x - x.mean(0, keepdims=True))
        return jnp.where(x[:, :1] > 0.9, jnp.nan, logits)

    diagnosis = jr.diagnose(model, X, Y, threat=jr.Linf(0.1), key=jax.random.key(0))
    assert {"neighbours", "finite_outputs"} <= set(diagnosis.flagged)
    share = float((X[:, 0] > 0.9).mean())
    assert diagnosis["finite_outputs"].figure == pytest.approx(share)
    summary = json.loads(json.dumps(diagnosis.summary(), allow_nan=False))
    assert len(summary["checks"]) == len(diagnosis) == len(list(diagnosis))
    assert "NOT to be believed" in str(diagnosis)
    with pytest.raises(KeyError, match="there are: program"):
        diagnosis["nothing"]


def test_a_model_that_cannot_be_differentiated():
    """Said in a check, not as an error from the inside."""

    def model(x):
        shape = jax.ShapeDtypeStruct((len(x), 3), x.dtype)
        return jax.pure_callback(lambda x: np.asarray(x) @ WEIGHTS, shape, x)

    diagnosis = jr.diagnose(model, X, Y, threat=jr.Linf(0.1), key=jax.random.key(0))
    assert diagnosis.flagged == ("program", "differentiable")


def test_verdicts():
    """The limit itself passes; NaN does not."""
    limits = [
        judged("n", f, 0.1, "", "", warn_above=0.0).verdict for f in (0, 0.1, 0.2)
    ]
    assert limits == ["pass", "warn", "fail"]
    assert judged("n", float("nan"), 0.1, "", "").verdict == "fail"


def test_misuse():
    """Keys, labels and traced calls."""
    with pytest.raises(ValueError, match="diagnose draws random numbers"):
        jr.diagnose(linear, X, Y, threat=jr.Linf(0.1), key=None)
    with pytest.raises(ValueError, match="the model has 3 classes"):
        jr.diagnose(linear, X, Y + 3, threat=jr.Linf(0.1), key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"\[B, C\] is needed"):
        jr.diagnose(lambda x: x[:, 0], X, Y, threat=jr.Linf(0.1), key=jax.random.key(0))
