"""Training on several devices is training on one, up to rounding."""

import json

import jax
import numpy as np
import optax
import pytest

import jaxrobust as jr
from jaxrobust.training import storage
from tests import two_processes
from tests.training.killed_run import data

FLAT, Y = data(64)
X = FLAT.reshape(-1, 2, 3, 1)  # images, as the models take them


def train(**options):
    """PGD training of an MLP: 8 steps of plain SGD."""
    model = jr.models.create("mlp", input_shape=(2, 3, 1), num_classes=3, seed=0)
    objective = jr.training.adversarial(jr.PGD(num_steps=3), threat=jr.Linf(0.05))
    settings = dict(num_epochs=2, batch_size=16, key=jax.random.key(0)) | options
    return jr.training.fit(model, objective, optax.sgd(0.1), X, Y, **settings)


@pytest.mark.slow
def test_four_devices():
    """The same draws, so the same losses and weights."""
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices: the suite's conftest.py makes virtual ones")
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    scoring = dict(validation_attack=jr.FGSM(), threat=jr.Linf(0.05))
    validation = dict(validation=(X[:40], Y[:40]), **scoring)
    alone, spread = train(**validation), train(mesh=mesh, **validation)
    kernel = jax.tree.leaves(spread.last)[0]
    assert len(kernel.sharding.device_set) == 4
    # Sums over the batch are made in another order; 8 small steps keep that small.
    np.testing.assert_allclose(alone.last(X), np.asarray(spread.last(X)), atol=1e-4)
    for one, four in zip(alone.history, spread.history, strict=True):
        assert four["train_loss"] == pytest.approx(one["train_loss"], abs=1e-5)
        # One of 40 examples may lie on the boundary.
        assert four["val_robust"] == pytest.approx(one["val_robust"], abs=1.5 / 40)


def test_a_batch_that_cannot_be_spread():
    """Said before anything is compiled."""
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices: the suite's conftest.py makes virtual ones")
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(ValueError, match="cannot be spread over 4 devices"):
        train(mesh=mesh, batch_size=10)


SCRIPT = """
import numpy as np
from tests.training.test_devices import train
from jaxrobust import training
result = train(mesh=mesh)
if number == 0:  # by itself: nothing in it waits for the other
    training.save_checkpoint(f"{arguments[0]}/net", result.best, {})
loss = result.history[-1]["train_loss"]
np.savez(f"{arguments[0]}/result{number}", loss=loss)
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Two hosts with a device each take the steps of one."""
    two_processes.run(SCRIPT, tmp_path)
    result = train()
    net = jr.training.load_checkpoint(tmp_path / "net", result.best)[0]
    np.testing.assert_allclose(net(X), result.best(X), atol=1e-4)
    alone = result.history[-1]["train_loss"]
    for i in range(2):
        with np.load(tmp_path / f"result{i}.npz") as result:
            assert float(result["loss"]) == pytest.approx(alone, abs=1e-5)


KILLED = """
import json
import numpy as np
from flax import nnx
from jaxrobust._core.placing import Placing
from jaxrobust.training import storage
from tests.training import killed_run
directory, num_epochs, is_spread = arguments

class Spread(killed_run.Net):  # a kernel that no process holds whole
    def __init__(self, seed):
        super().__init__(seed)
        half = jax.NamedSharding(mesh, jax.P(None, "batch"))
        kernel = jax.device_put(np.asarray(self.hidden.kernel[...]), half)
        self.hidden.kernel = nnx.Param(kernel)

killed_run.Net = Spread if is_spread == "True" else killed_run.Net
write, writes = storage.write, []
storage.write = lambda *args: writes.append(write(*args))

def result(*where):
    # The first model is another: what counts comes from the checkpoint.
    seed = 9 if where and storage.exists(f"{where[0]}/last") else 0
    options = dict(mesh=mesh, checkpoint_every=4, seed=seed)
    result = killed_run.run(int(num_epochs), *where, **options)
    kernel = result.last.hidden.kernel[...]
    assert kernel.is_fully_replicated == (is_spread == "False")
    arrays = {}
    for name in ("last", "best"):
        state = nnx.state(getattr(result, name))
        found = storage.to_arrays(state, Placing(mesh).fetch)
        arrays |= {f"{name}.{key}": array for key, array in found.items()}
    lines = [{**line, "seconds": 0} for line in result.history]
    return arrays | {"history": np.array(json.dumps(lines))}

resumed = result(f"{directory}/new/run")
assert bool(writes) == (number == 0)
whole = result()
for name in whole:
    np.testing.assert_array_equal(resumed[name], whole[name], err_msg=name)
np.savez(f"{directory}/result{number}", **resumed)
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_spread", [False, True])
def test_two_processes_killed(tmp_path, is_spread):
    """Both go on from the one run, to the last bit; no file is written twice."""
    out = tmp_path / "new" / "run"
    is_time = (out / "last").exists
    two_processes.kill_when(is_time, KILLED, tmp_path, 10000, is_spread)
    done = storage.read_info(out / "last")["run"]["step"]
    num_epochs = done // 6 + 2
    two_processes.run(KILLED, tmp_path, num_epochs, is_spread)
    names = sorted(path.name for path in out.iterdir())
    assert names == ["best", "last", "metrics.jsonl"]
    lines = [
        json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["epoch"] for line in lines] == [*range(1, num_epochs + 1)]
    saved = storage.read_arrays(out / "last", "model")
    for i in range(2):
        with np.load(tmp_path / f"result{i}.npz") as result:
            assert json.loads(str(result["history"])) == [
                {**line, "seconds": 0} for line in lines
            ]
            for name, array in saved.items():
                np.testing.assert_array_equal(result[f"last.{name}"], array)
