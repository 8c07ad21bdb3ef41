"""The same evaluation on several devices, and in two processes."""

import jax
import numpy as np
import pytest

from tests import two_processes
from tests.evaluation import killed_evaluation
from tests.problems import MODEL, RESTARTS, evaluate


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


@pytest.mark.slow
def test_parameters_that_are_spread_already(mesh):
    """A model too large for one device stays spread over the mesh."""
    sharding = jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec(None, "batch")
    )
    params = MODEL.args[0]
    placed = (jax.device_put(params[0], sharding), params[1])
    model = jax.tree_util.Partial(MODEL.func, placed)
    import jaxrobust as jr
    from tests.problems import KEY, THREAT, X, Y

    options = dict(attack=RESTARTS, threat=THREAT, key=KEY, batch_size=8)
    report = jr.evaluate(model, X, Y, mesh=mesh, **options)
    np.testing.assert_array_equal(report.is_robust, evaluate().is_robust)


def test_a_batch_that_cannot_be_spread(mesh):
    """Said before anything is compiled."""
    with pytest.raises(ValueError, match="multiple of the number of devices"):
        evaluate(batch_size=6, mesh=mesh)


SCRIPT = """
import numpy as np
from tests.problems import evaluate
report = evaluate(batch_size=8, mesh=mesh)
file = f"{arguments[0]}/result{number}"
np.savez(file, x_adv=report.x_adv, is_robust=report.is_robust)
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Two hosts with a device each: both get the whole report, that of one device."""
    two_processes.run(SCRIPT, tmp_path)
    alone = evaluate(batch_size=4)
    for i in range(2):
        with np.load(tmp_path / f"result{i}.npz") as result:
            np.testing.assert_array_equal(result["is_robust"], alone.is_robust)
            np.testing.assert_array_equal(result["x_adv"], alone.x_adv)


# Process 1's clock says that it is never time: that of process 0 counts.
KILLED = """
import numpy as np
from jaxrobust.evaluation.queue import _saved
from tests.evaluation import killed_evaluation
directory, seconds = arguments
killed_evaluation.slow_down(float(seconds))
write, writes, resumed = _saved._try_to_write, [], []
_saved._try_to_write = lambda *args: writes.append(write(*args))
from_arrays = _saved._from_arrays
_saved._from_arrays = lambda *args: resumed.append(1) or from_arrays(*args)
every = 1e9 if number else 0.0
path = f"{directory}/new/state.npz"
report = killed_evaluation.run(path, mesh=mesh, save_every=every)
arrays = dict(x_adv=report.x_adv, broken_by=report.broken_by, loss_adv=report.loss_adv)
counts = dict(num_writes=len(writes), num_resumed=len(resumed))
np.savez(f"{directory}/result{number}", **arrays, **counts)
"""


@pytest.mark.slow
def test_two_processes_killed(tmp_path):
    """Both go on from the one file, to the last bit, and it is gone in the end."""
    file = tmp_path / "new" / "state.npz"
    two_processes.kill_when(file.exists, KILLED, tmp_path, 0.05)
    assert file.exists() and not list(tmp_path.glob("result*"))
    two_processes.run(KILLED, tmp_path, 0)
    assert not list(file.parent.iterdir())
    whole = killed_evaluation.run(batch_size=4)
    for i in range(2):
        with np.load(tmp_path / f"result{i}.npz") as result:
            for name in ("x_adv", "broken_by", "loss_adv"):
                np.testing.assert_array_equal(result[name], getattr(whole, name))
            assert result["num_resumed"] == 1
            assert (result["num_writes"] > 0) == (i == 0)
