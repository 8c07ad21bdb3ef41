"""Training on several devices is training on one, up to rounding."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

import jaxrobust as jr
from tests.training.killed_run import data

ROOT = pathlib.Path(__file__).parents[2]
FLAT, Y = data(64)
X = FLAT.reshape(-1, 2, 3, 1)  # images, as the models take them


def train(**options):
    """PGD training of an MLP: 8 steps of plain SGD."""
    model = jr.models.create("mlp", input_shape=(2, 3, 1), num_classes=3, seed=0)
    objective = jr.training.adversarial(jr.PGD(num_steps=3), threat=jr.Linf(0.05))
    settings = dict(num_epochs=2, batch_size=16, key=jax.random.key(0)) | options
    return jr.training.fit(model, objective, optax.sgd(0.1), X, Y, **settings)


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
import sys
import jax
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
import numpy as np
from tests.training.test_devices import train
mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
np.savez(sys.argv[3] + sys.argv[2], loss=train(mesh=mesh).history[-1]["train_loss"])
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Two hosts with a device each take the steps of one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    environment |= {"PYTHONPATH": str(ROOT)}
    options = dict(cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    arguments = [sys.executable, "-c", SCRIPT, address]
    processes = [
        subprocess.Popen([*arguments, str(i), f"{tmp_path}/result"], **options)
        for i in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-2000:]
    alone = train().history[-1]["train_loss"]
    for i in range(2):
        with np.load(tmp_path / f"result{i}.npz") as result:
            assert float(result["loss"]) == pytest.approx(alone, abs=1e-5)
