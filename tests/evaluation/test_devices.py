"""The same evaluation on several devices, and in two processes."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.evaluation.test_slots import MODEL, RESTARTS, evaluate

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def mesh():
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices: the suite's conftest.py makes virtual ones")
    return jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))


@pytest.mark.parametrize("stop_early", [True, False])
def test_four_devices(mesh, stop_early):
    """At the same batch per device, bit for bit; the same draws, the same decisions."""
    whole = evaluate(batch_size=2, stop_early=stop_early)
    spread = evaluate(batch_size=8, stop_early=stop_early, mesh=mesh)
    np.testing.assert_array_equal(spread.is_robust, whole.is_robust)
    np.testing.assert_array_equal(spread.broken_by, whole.broken_by)
    np.testing.assert_array_equal(spread.x_adv, whole.x_adv)


def test_parameters_that_are_spread_already(mesh):
    """A model too large for one device stays spread over the mesh."""
    sharding = jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec(None, "batch")
    )
    params = MODEL.args[0]
    placed = (jax.device_put(params[0], sharding), params[1])
    model = jax.tree_util.Partial(MODEL.func, placed)
    import jaxrobust as jr
    from tests.evaluation.test_slots import KEY, THREAT, X, Y

    options = dict(attack=RESTARTS, threat=THREAT, key=KEY, batch_size=8)
    report = jr.evaluate(model, X, Y, mesh=mesh, **options)
    np.testing.assert_array_equal(report.is_robust, evaluate().is_robust)


def test_a_batch_that_cannot_be_spread(mesh):
    """Said before anything is compiled."""
    with pytest.raises(ValueError, match="multiple of the number of devices"):
        evaluate(batch_size=6, mesh=mesh)


SCRIPT = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
import numpy as np
from tests.evaluation.test_slots import evaluate
mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
report = evaluate(batch_size=8, mesh=mesh)
np.savez(sys.argv[3] + sys.argv[2], x_adv=report.x_adv, is_robust=report.is_robust)
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Two hosts with a device each: both get the whole report, that of one device."""
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
    alone = evaluate(batch_size=4)
    for i in range(2):
        with np.load(tmp_path / f"result{i}.npz") as result:
            np.testing.assert_array_equal(result["is_robust"], alone.is_robust)
            np.testing.assert_array_equal(result["x_adv"], alone.x_adv)
