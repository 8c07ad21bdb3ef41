"""The training loop: what it computes, what it keeps, how it goes on."""

import json
import math
import pathlib
import subprocess
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

import jaxrobust as jr
from jaxrobust import training
from jaxrobust.training import loop, storage
from jaxrobust.training.run import RunDirectory
from tests.training import killed_run
from tests.training.killed_run import Net, attack, data, objective, run

pytestmark = pytest.mark.thin

ROOT = pathlib.Path(__file__).parents[2]
STEPS_PER_EPOCH = 6  # 100 examples in batches of 16; the last 4 are dropped


def arrays_of(model):
    return storage.to_arrays(nnx.state(model))


def assert_same(a, b):
    """Equal to the last bit."""
    a, b = arrays_of(a), arrays_of(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def without_time(history):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in history]


def assert_same_result(a, b):
    assert without_time(a.history) == without_time(b.history)
    assert a.best_epoch == b.best_epoch
    assert_same(a.last, b.last)
    assert_same(a.best, b.best)


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """Most runs below are the same program: compile it once for this file."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    compilation_cache.reset_cache()  # it reads the directory once
    yield
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


@pytest.fixture(scope="module")
def whole_run():
    return run(4)


# What a step computes.


def linear_objective(trained_fn, attacked_fn, x, y, *, key, step):
    return killed_run.cross_entropy(trained_fn(x), y), {}


def test_a_full_batch_of_sgd_is_the_formula():
    x, y = data(12)
    model = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    kernel, bias = model.kernel[...], model.bias[...]
    result = training.fit(
        model, linear_objective, optax.sgd(0.5), x, y,
        num_epochs=1, batch_size=12, key=killed_run.KEY,
    )  # fmt: skip
    residual = jax.nn.softmax(x @ kernel + bias[None]) - jax.nn.one_hot(y, 3)
    # The permutation changes the order of float32 sums of 12 terms.
    close = dict(rtol=1e-5, atol=1e-6)
    expected = kernel - 0.5 * x.T @ residual / 12
    np.testing.assert_allclose(result.last.kernel[...], expected, **close)
    np.testing.assert_allclose(
        result.last.bias[...], bias - 0.5 * residual.mean(0), **close
    )
    norm = math.hypot(
        jnp.linalg.norm(x.T @ residual / 12), jnp.linalg.norm(residual.mean(0))
    )
    assert result.history[0]["train_grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_an_epoch_visits_each_example_once():
    # The loss is linear in the weights: the sum of the steps is the sum of the inputs.
    def loss(trained_fn, attacked_fn, x, y, *, key, step):
        return trained_fn(x)[:, 0].sum(), {}

    x, y = data(12)
    model = nnx.Linear(6, 3, use_bias=False, rngs=nnx.Rngs(0))
    result = training.fit(
        model, loss, optax.sgd(1.0), x, y,
        num_epochs=1, batch_size=3, key=killed_run.KEY,
    )  # fmt: skip
    change = model.kernel[...] - result.last.kernel[...]
    np.testing.assert_allclose(change[:, 0], x.sum(0), rtol=1e-5)


def test_adversarial_training_learns(whole_run):
    first, last = whole_run.history[0], whole_run.history[-1]
    assert last["train_loss"] < 0.8 * first["train_loss"]
    assert last["val_robust"] > 0.5  # chance is 1/3
    assert last["val_robust"] < last["val_clean"]  # the attack does something


def test_the_model_given_is_not_changed():
    model = Net()
    before = arrays_of(model)
    x, y = data(32)
    training.fit(
        model, objective, optax.sgd(0.1), x, y,
        num_epochs=1, batch_size=16, key=killed_run.KEY,
    )  # fmt: skip
    for name, array in arrays_of(model).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    assert not model.dropout.deterministic


def one_step(objective, **options):
    x, y = data(16)
    return training.fit(
        Net(), objective, optax.sgd(0.1), x, y,
        num_epochs=1, batch_size=16, key=killed_run.KEY, **options,
    )  # fmt: skip


def observe(trained_fn, attacked_fn, x, y, *, key, step):
    metrics = {"seen": attacked_fn(x).sum(), "again": attacked_fn(x).sum()}
    return killed_run.cross_entropy(trained_fn(x), y), metrics


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_adversary_leaves_no_trace_in_the_statistics(mode):
    attacked = one_step(observe, attacked_mode=mode)
    assert_same(attacked.last, one_step(linear_objective).last)
    assert int(attacked.last.dropout.rngs.count[...]) == 1  # one call in training mode
    x, _ = data(16)
    hidden = Net().hidden(x)
    np.testing.assert_allclose(
        attacked.last.norm.mean[...], 0.01 * hidden.mean(0), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_what_the_adversary_sees(mode):
    x, _ = data(16)
    model = Net()
    model.eval() if mode == "eval" else model.train()
    seen = one_step(observe, attacked_mode=mode).history[0]
    assert seen["train_seen"] == seen["train_again"]
    # Dropout draws for positions of the batch, which is permuted: compare sums without.
    if mode == "eval":
        assert seen["train_seen"] == pytest.approx(float(model(x).sum()), rel=1e-4)
    else:
        eval_seen = one_step(observe, attacked_mode="eval").history[0]["train_seen"]
        assert seen["train_seen"] != pytest.approx(eval_seen, rel=1e-3)


def test_no_gradient_flows_through_the_adversary():
    def leaky(trained_fn, attacked_fn, x, y, *, key, step):
        loss, _ = linear_objective(trained_fn, attacked_fn, x, y, key=key, step=step)
        return loss + 10 * attacked_fn(x).sum(), {}

    assert_same(one_step(leaky).last, one_step(linear_objective).last)


def test_moving_average_of_the_first_step():
    # Decay at step 0: min(0.9, 1 / 10).
    start = arrays_of(Net())
    plain = one_step(linear_objective)
    average = one_step(linear_objective, ema_decay=0.9)
    for name, array in arrays_of(average.last).items():
        new = arrays_of(plain.last)[name]
        is_float = np.issubdtype(new.dtype, np.floating)
        expected = 0.1 * start[name] + 0.9 * new if is_float else new
        np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("scale, divisor", [(None, 255), (16.0, 16)])
def test_stored_pixels_are_scaled_after_augmentation(scale, divisor):
    def augment(key, x):
        assert x.dtype == jnp.uint8 and key.shape == ()
        return x + jnp.uint8(1)

    def loss(trained_fn, attacked_fn, x, y, *, key, step):
        assert x.dtype == jnp.float32
        return trained_fn(x).sum(), {"mean": x.mean()}

    x = jnp.full((8, 2), 15, jnp.uint8).at[0].set(127)  # not dark
    result = training.fit(
        nnx.Linear(2, 2, rngs=nnx.Rngs(0)), loss, optax.sgd(0.1), x, jnp.zeros(8, int),
        num_epochs=1, batch_size=4, key=killed_run.KEY, augment=augment, scale=scale,
    )  # fmt: skip
    assert result.history[0]["train_mean"] == pytest.approx(30 / divisor)


@pytest.mark.slow
def test_everything_is_compiled_once():
    traces = {"objective": 0, "attack": 0}

    def counting(trained_fn, attacked_fn, x, y, *, key, step):
        traces["objective"] += 1
        return objective(trained_fn, attacked_fn, x, y, key=key, step=step)

    def counting_attack(*args, **kwargs):
        traces["attack"] += 1
        return attack(*args, **kwargs)

    x, y = data(50)
    training.fit(
        Net(), counting, optax.adam(0.01), x, y,
        num_epochs=3, batch_size=16, key=killed_run.KEY,
        validation=data(41), validation_attack=counting_attack, threat=0.1,
    )  # fmt: skip
    assert traces == {"objective": 1, "attack": 1}


@pytest.mark.parametrize("num", [4, 6, 100])
def test_steps_without_the_host(whole_run, num):
    """Several steps in one call, that need not divide the epoch, are the same steps."""
    other = run(len(whole_run.history), steps_per_call=num)
    for line, expected in zip(other.history, whole_run.history, strict=True):
        # Another program may round differently; Adam amplifies that in a few epochs.
        assert line["step"] == expected["step"]
        assert line["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-3)
    a, b = arrays_of(other.last), arrays_of(whole_run.last)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-3, err_msg=name)


@pytest.mark.slow
def test_steps_per_call_stop_at_checkpoints(tmp_path):
    """What is saved after 5 steps is the run after 5 steps."""
    run(1, tmp_path / "a", checkpoint_every=5, steps_per_call=4)
    run(1, tmp_path / "b", checkpoint_every=5, steps_per_call=1)
    a, b = (read_metrics(tmp_path / name) for name in ("a", "b"))
    assert [line["step"] for line in a] == [line["step"] for line in b] == [6]
    assert a[0]["train_loss"] == pytest.approx(b[0]["train_loss"], rel=1e-4)


def test_several_steps_are_compiled_once():
    traces = []

    def counting(trained_fn, attacked_fn, x, y, *, key, step):
        traces.append(step)
        return objective(trained_fn, attacked_fn, x, y, key=key, step=step)

    x, y = data(100)
    training.fit(
        Net(), counting, optax.adam(0.01), x, y,
        num_epochs=2, batch_size=16, key=killed_run.KEY, steps_per_call=4,
    )  # fmt: skip
    assert len(traces) == 1, "one program for calls of 4 and of 2 steps"


# Validation and the best model.


def test_validation_does_not_depend_on_its_batches(whole_run):
    for batch_size in (7, 100):
        other = run(1, validation_batch_size=batch_size)
        assert without_time(other.history) == without_time(whole_run.history[:1])


def test_validation_scores_the_models_returned(whole_run):
    x, y = data(41, seed=1)
    for model, epoch in ((whole_run.last, 4), (whole_run.best, whole_run.best_epoch)):
        accuracy = float((model(x).argmax(-1) == y).mean())
        line = whole_run.history[epoch - 1]
        assert line["val_clean"] == pytest.approx(accuracy, abs=1e-6)


def test_best_is_the_first_of_the_best_robust_epochs():
    # The second epoch's steps throw the model away.
    optimizer = optax.sgd(lambda step: jnp.where(step < 12, 0.3, 300.0))
    x, y = data(100)
    result = training.fit(
        Net(), objective, optimizer, x, y,
        num_epochs=4, batch_size=16, key=killed_run.KEY,
        validation=data(41, seed=1), validation_attack=attack, threat=0.1,
    )  # fmt: skip
    scores = [line["val_robust"] for line in result.history]
    assert result.best_epoch == 1 + scores.index(max(scores)) <= 2
    assert min(scores[2:]) < max(scores)


def test_without_validation_best_is_last():
    result = run(2, validation=None, validation_attack=None, threat=None)
    assert_same(result.best, result.last)
    assert result.best_epoch == 2
    assert "val_clean" not in result.history[-1]


def test_without_attack_clean_accuracy_decides():
    result = run(2, validation_attack=None, threat=None)
    scores = [line["val_clean"] for line in result.history]
    assert result.best_epoch == 1 + scores.index(max(scores))
    assert "val_robust" not in result.history[0]


# The output directory and resumption.


def read_metrics(out):
    return [
        json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()
    ]


def test_output_directory(whole_run, tmp_path):
    result = run(4, tmp_path)
    assert_same_result(result, whole_run)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best",
        "last",
        "metrics.jsonl",
    ]
    assert read_metrics(tmp_path) == result.history
    for name in ("last", "best"):
        loaded, metadata = training.load_checkpoint(tmp_path / name, Net(seed=5))
        assert_same(loaded, getattr(result, name))
        assert metadata["recipe"] == {"learning_rate": 0.01}
    assert metadata["metrics"]["epoch"] == result.best_epoch


def test_stop_and_resume_is_the_whole_run_to_the_last_bit(whole_run, tmp_path):
    run(2, tmp_path)
    # Another initial model: everything must come from the checkpoint.
    resumed = run(4, tmp_path, seed=9)
    assert_same_result(resumed, whole_run)
    assert read_metrics(tmp_path) == resumed.history
    assert_same(training.load_checkpoint(tmp_path / "best", Net())[0], whole_run.best)


@pytest.mark.parametrize("num_saves", [1, 2, 4])
def test_interrupted_within_an_epoch(whole_run, tmp_path, monkeypatch, num_saves):
    saves = iter(range(num_saves))
    original = RunDirectory.save

    def save(self, state):
        if next(saves, None) is None:
            raise KeyboardInterrupt
        original(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save", save)
        with pytest.raises(KeyboardInterrupt):
            run(4, tmp_path, checkpoint_every=4)
    saved = storage.read_info(tmp_path / "last")["run"]
    assert saved["step"] == 4 * num_saves
    resumed = run(4, tmp_path, checkpoint_every=5)
    assert_same_result(resumed, whole_run)
    assert read_metrics(tmp_path) == resumed.history


@pytest.mark.slow
def test_killed_process(whole_run, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "tests.training.killed_run", str(out), "10000"]
    process = subprocess.Popen(command, cwd=ROOT)
    deadline = time.monotonic() + 120
    while not (out / "last").exists() and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.01)
    time.sleep(0.2)  # somewhere in a later epoch, step or write
    process.kill()
    process.wait()
    done = storage.read_info(out / "last")["run"]["step"]
    assert done % STEPS_PER_EPOCH == 0
    num_epochs = done // STEPS_PER_EPOCH + 2
    assert_same_result(run(num_epochs, out), run(num_epochs))
    assert [line["epoch"] for line in read_metrics(out)] == [
        *range(1, num_epochs + 1)
    ]  # neither lost nor double


def test_a_finished_run_returns_at_once(tmp_path, monkeypatch):
    finished = run(1, tmp_path)

    def fail(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(RunDirectory, "save", fail)
    # Traced it is, to see that it is the same run.
    monkeypatch.setattr(loop, "make_train_steps", lambda *args: fail)
    again = run(1, tmp_path)
    assert_same_result(again, finished)
    assert again.history == finished.history


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": 8}, "batch_size was 16 and is 8"),
        ({"key": jax.random.key(3)}, r"key was key \[0, 0\] and is key \[0, 3\]"),
        ({"threat": 0.2}, "threat was 0.05 and is 0.2"),
        ({"ema_decay": None}, "ema_decay was 0.9 and is None"),
        ({"validation": data(41, seed=2)}, "validation was float32.*crc32"),
        ({"metadata": {"recipe": {"learning_rate": 0.1}}}, "learning_rate"),
    ],
)
def test_other_settings_are_not_mixed(tmp_path_factory, changes, message):
    out = tmp_path_factory.getbasetemp() / "shared-run"
    run(1, out)
    with pytest.raises(ValueError, match=message) as error:
        run(2, out, **changes)
    assert "resume=False" in str(error.value)


def test_another_model_is_noticed(tmp_path):
    run(1, tmp_path)
    wide = Net()
    wide.hidden = nnx.Linear(6, 9, rngs=nnx.Rngs(0))
    wide.norm = nnx.BatchNorm(9, rngs=nnx.Rngs(0))
    wide.out = nnx.Linear(9, 3, rngs=nnx.Rngs(0))
    killed = killed_run.Net
    try:
        killed_run.Net = lambda seed: wide
        with pytest.raises(ValueError, match="another architecture"):
            run(2, tmp_path)
    finally:
        killed_run.Net = killed


@pytest.mark.slow
def test_resume_false_starts_again(tmp_path, whole_run):
    run(2, tmp_path, key=jax.random.key(4))
    again = run(4, tmp_path, resume=False)
    assert_same_result(again, whole_run)
    assert read_metrics(tmp_path) == again.history


def test_fewer_epochs_than_done(tmp_path):
    run(2, tmp_path)
    with pytest.raises(ValueError, match="has done 12 steps"):
        run(1, tmp_path)


def test_out_that_cannot_be_written_is_noticed_first(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write to the output directory"):
        run(1, tmp_path / "file" / "run")


# Failure and misuse.


def test_divergence_names_the_step_and_the_remedy():
    def loss(trained_fn, attacked_fn, x, y, *, key, step):
        return (trained_fn(x) ** 2).sum(), {}

    x, y = data(64)
    with pytest.raises(FloatingPointError, match=r"at step [1-9]\d*\. Use a smaller"):
        training.fit(
            nnx.Linear(6, 3, rngs=nnx.Rngs(0)), loss, optax.sgd(1e6), x, y,
            num_epochs=20, batch_size=16, key=killed_run.KEY,
        )  # fmt: skip


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"batch_size": 101}, ValueError, "batch_size is 101"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"ema_decay": 1.0}, ValueError, "ema_decay is 1.0"),
        ({"attacked_mode": "test"}, ValueError, "attacked_mode is 'test'"),
        ({"validation": None}, ValueError, "validation_attack needs"),
        ({"threat": None}, ValueError, "validation_attack needs"),
        (
            {"validation": (jnp.ones((3, 6)), jnp.ones(2, int))},
            ValueError,
            r"\(3, 6\)",
        ),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every is 0"),
        ({"steps_per_call": 0}, ValueError, "steps_per_call is 0"),
        ({"scale": 0}, ValueError, "scale is 0"),
        ({"key": 0}, TypeError, r"jax.random.key\(seed\)"),
        ({"key": None}, TypeError, r"jax.random.key\(seed\)"),
        ({"key": jax.random.split(killed_run.KEY)}, TypeError, "not one PRNG key"),
    ],
)
def test_misuse(changes, error, message):
    with pytest.raises(error, match=message):
        run(1, **changes)


@pytest.mark.parametrize(
    "x, y, error, message",
    [
        (0.5, 0.5, TypeError, "labels are of type float"),
        (jnp.nan, 1, ValueError, "NaN or infinite"),
        (
            200.0,
            1,
            ValueError,
            r"in \[200, 200\], outside the bounds \(0.0, 1.0\).*Pass scale=",
        ),
    ],
)
def test_data_that_cannot_be_learnt_from(x, y, error, message):
    adversarial = training.adversarial(jr.FGSM(), jr.Linf(0.1))
    with pytest.raises(error, match=message):
        training.fit(
            nnx.Linear(6, 3, rngs=nnx.Rngs(0)), adversarial, optax.sgd(0.1),
            jnp.full((8, 6), x), np.full(8, y),
            num_epochs=1, batch_size=4, key=killed_run.KEY,
        )  # fmt: skip


@pytest.mark.parametrize(
    "place, wrong, message",
    [
        (0, lambda x: x, "fit trains modules of flax.nnx"),
        (1, jr.PGD(num_steps=2), r"pass jr.training.standard\(\) or"),
        (1, "standard", "is not an objective"),
        (1, training.standard, "is not an objective"),
        (2, 1e-3, r"optax.adam\(1e-3\)"),
    ],
)
def test_something_else_as_model_objective_or_optimizer(place, wrong, message):
    parts = [nnx.Linear(6, 3, rngs=nnx.Rngs(0)), training.standard(), optax.sgd(0.1)]
    parts[place] = wrong
    with pytest.raises(TypeError, match=message):
        training.fit(
            *parts, jnp.ones((8, 6)), np.ones(8, int),
            num_epochs=1, batch_size=4, key=killed_run.KEY,
        )  # fmt: skip


@pytest.mark.parametrize("labels", [np.full(8, 3), np.full(8, -1)])
def test_labels_that_are_no_classes(labels):
    with pytest.raises(ValueError, match="the model has 3 classes"):
        training.fit(
            nnx.Linear(6, 3, rngs=nnx.Rngs(0)), training.standard(), optax.sgd(0.1),
            jnp.ones((8, 6)), labels, num_epochs=1, batch_size=4, key=killed_run.KEY,
        )  # fmt: skip


@pytest.mark.parametrize("scale, is_warned", [(255, True), (16, False), (None, False)])
def test_a_scale_that_leaves_the_images_dark(scale, is_warned):
    x = np.full((8, 6), 16.0 if scale else 0.1, np.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        training.fit(
            nnx.Linear(6, 3, rngs=nnx.Rngs(0)), training.standard(), optax.sgd(0.1),
            x, np.zeros(8, int), scale=scale, num_epochs=1, batch_size=4,
            key=killed_run.KEY,
        )  # fmt: skip
    assert [w.filename for w in caught] == [__file__] * is_warned


def test_attack_and_threat_exchanged():
    with pytest.raises(TypeError, match="is not an attack"):
        training.adversarial(jr.Linf(0.1), jr.FGSM())


def test_num_epochs_must_be_positive():
    with pytest.raises(ValueError, match="num_epochs is 0"):
        run(0)


def test_importing_training_does_not_import_flax():
    code = (
        "import sys, jaxrobust.training as t; assert callable(t.adversarial);"
        "print([m for m in ('flax', 'orbax', 'rich') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert output.stdout.strip() == "[]", output.stderr
    assert "fit" in dir(training)
