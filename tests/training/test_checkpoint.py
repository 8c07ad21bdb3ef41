"""Checkpoints: what comes back, and what is said where nothing can."""

import gc
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
from flax import nnx

from jaxrobust import training
from jaxrobust.training import storage

pytestmark = pytest.mark.thin


class Net(nnx.Module):
    """Parameters of two dtypes, batch statistics, a dropout key, a list."""

    def __init__(self, seed: int = 0, width: int = 5):
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List(
            [
                nnx.Linear(4, width, rngs=rngs),
                nnx.Linear(width, 3, param_dtype=jnp.bfloat16, rngs=rngs),
            ]
        )
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(nnx.relu(self.norm(self.layers[0](x))))
        return self.layers[1](x)


def arrays_of(model):
    return storage.to_arrays(nnx.state(model))


@pytest.fixture
def model():
    net = Net(seed=1)
    net.train()
    net(jnp.linspace(0, 1, 24).reshape(6, 4))  # moves statistics and dropout's counter
    return net


@pytest.fixture
def path(model, tmp_path):
    training.save_checkpoint(tmp_path / "net", model, {"dataset": "digits"})
    return tmp_path / "net"


def test_every_array_comes_back_to_the_last_bit(model, path):
    loaded, metadata = training.load_checkpoint(path, Net(seed=2))
    saved, restored = arrays_of(model), arrays_of(loaded)
    assert saved.keys() == restored.keys()
    assert {"layers.0.kernel", "norm.mean", "dropout.rngs.key"} <= saved.keys()
    for name, array in saved.items():
        assert array.dtype == restored[name].dtype
        np.testing.assert_array_equal(array, restored[name], err_msg=name)
    assert metadata["dataset"] == "digits"
    assert metadata["versions"]["jax"] == jax.__version__


def test_the_loaded_model_is_in_evaluation_mode_and_the_template_untouched(path):
    template = Net(seed=2)
    before = arrays_of(template)
    loaded, _ = training.load_checkpoint(path, template)
    assert loaded.dropout.deterministic and loaded.norm.use_running_average
    for name, array in arrays_of(template).items():
        np.testing.assert_array_equal(array, before[name])


def test_metadata_alone_rebuilds_a_model_of_the_library(tmp_path):
    models = pytest.importorskip("jaxrobust.models")
    if not hasattr(models, "create"):
        pytest.skip("needs jaxrobust.models.create")
    spec = {"name": models.NAMES[0], "input_shape": (8, 8, 1), "num_classes": 10}
    model = models.create(**spec, seed=3)
    training.save_checkpoint(tmp_path / "net", model, {"model": spec})
    loaded, metadata = training.load_checkpoint(tmp_path / "net")
    for name, array in arrays_of(model).items():
        np.testing.assert_array_equal(array, arrays_of(loaded)[name])
    assert metadata["model"]["name"] == spec["name"]


def test_without_a_model_specification_a_template_is_asked_for(path):
    with pytest.raises(ValueError, match=r"load_checkpoint\(path, model\)"):
        training.load_checkpoint(path)


def test_saving_again_replaces(path):
    training.save_checkpoint(path, Net(seed=7), {"dataset": "mnist"})
    loaded, metadata = training.load_checkpoint(path, Net())
    assert metadata["dataset"] == "mnist"
    np.testing.assert_array_equal(
        arrays_of(loaded)["layers.0.kernel"], arrays_of(Net(seed=7))["layers.0.kernel"]
    )
    assert [p.name for p in path.parent.iterdir()] == ["net"]


def test_missing_path(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        training.load_checkpoint(tmp_path / "absent")


def test_foreign_directory_is_neither_read_nor_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="not a jaxrobust checkpoint"):
        training.load_checkpoint(tmp_path, Net())
    with pytest.raises(ValueError, match="not a jaxrobust checkpoint"):
        training.save_checkpoint(tmp_path, Net(), {})
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_run_directory_points_to_its_checkpoint(tmp_path):
    training.save_checkpoint(tmp_path / "best", Net(), {})
    with pytest.raises(ValueError, match=r"Did you mean .*best\?"):
        training.load_checkpoint(tmp_path, Net())


def test_another_format_is_named(path):
    (path / "checkpoint.json").write_text('{"format": "something-else"}')
    with pytest.raises(ValueError, match="something-else"):
        training.load_checkpoint(path, Net())


def test_truncated_json(path):
    file = path / "checkpoint.json"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match="unreadable or incomplete"):
        training.load_checkpoint(path, Net())


def test_missing_arrays(path):
    shutil.rmtree(path / "model")
    with pytest.raises(ValueError, match="unreadable or incomplete"):
        training.load_checkpoint(path, Net())


def test_changed_bits_are_noticed(path):
    # Orbax alone lets some of them pass.
    info = json.loads((path / "checkpoint.json").read_text())
    info["crc32"]["model"] ^= 1
    (path / "checkpoint.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="checksum"):
        training.load_checkpoint(path, Net())


def test_another_architecture(path):
    with pytest.raises(
        ValueError, match=r"architecture: 'layers.0.bias' is float32\[5"
    ):
        training.load_checkpoint(path, Net(width=6))


def test_metadata_must_be_json(tmp_path):
    with pytest.raises(TypeError, match="metadata must hold"):
        training.save_checkpoint(tmp_path / "net", Net(), {"eps": jnp.ones(2)})
    assert not (tmp_path / "net").exists()


def test_prepare_out_makes_the_directory_and_leaves_it_empty(tmp_path):
    path = training.prepare_out(tmp_path / "a" / "b")
    assert path.is_dir() and not list(path.iterdir())


def test_prepare_out_says_what_to_do_where_it_cannot_write(tmp_path):
    # Below a file: unlike a read-only directory, this stops the superuser too.
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Choose another directory"):
        training.prepare_out(tmp_path / "file" / "run")


class Killed(BaseException):
    """Not an Exception, as a signal is none."""


def kill_at(monkeypatch, call_number):
    """Stops at the n-th change of the file system during a write."""
    calls = iter(range(100))

    def wrap(owner, name):
        original = getattr(owner, name)

        def change(*args, **kwargs):
            if next(calls) == call_number:
                raise Killed(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, change)

    wrap(storage.shutil, "rmtree")
    wrap(pathlib.Path, "mkdir")
    wrap(orbax.checkpoint.StandardCheckpointer, "save")
    wrap(pathlib.Path, "write_text")
    wrap(pathlib.Path, "rename")


@pytest.mark.parametrize("call_number", range(20))
def test_a_write_killed_anywhere_leaves_a_complete_checkpoint(
    tmp_path, monkeypatch, call_number
):
    path = tmp_path / "net"
    old, new, third = ({"w": np.full(3, float(i))} for i in range(3))
    storage.write(path, {"model": old}, {})
    with monkeypatch.context() as patch:
        kill_at(patch, call_number)
        try:
            storage.write(path, {"model": new}, {})
        except Killed:
            pass
        else:
            # Beyond the last change: enough calls were tried, nothing is left to kill.
            assert call_number >= 7
    assert storage.exists(path)
    assert storage.read_arrays(path, "model")["w"][0] in (0.0, 1.0)
    storage.write(path, {"model": third}, {})
    assert storage.read_arrays(path, "model")["w"][0] == 2.0
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


@pytest.mark.parametrize("call_number", range(4))
def test_a_removal_killed_anywhere_leaves_all_or_nothing(
    tmp_path, monkeypatch, call_number
):
    path = tmp_path / "net"
    storage.write(path, {"model": {"w": np.ones(3)}}, {})
    with monkeypatch.context() as patch:
        kill_at(patch, call_number)
        try:
            storage.remove(path)
        except Killed:
            pass
    if storage.exists(path):
        assert storage.read_arrays(path, "model")["w"].shape == (3,)
    storage.remove(path)
    assert not storage.exists(path)


def damage(file, how):
    """Change one file of a checkpoint."""
    content = file.read_bytes()
    half = len(content) // 2
    if how == "truncated":
        file.write_bytes(content[:half])
    elif how == "changed":
        file.write_bytes(content[:half] + b"\xff" + content[half + 1 :])
    else:
        file.unlink()


@pytest.mark.parametrize("how", ["truncated", "changed", "lost"])
def test_a_damaged_file_is_one_error_and_no_traceback_of_a_thread(path, how, capfd):
    """Orbax would print one for each of its threads, 'Event loop is closed'."""
    file = next(p for p in sorted((path / "model").rglob("d/*")) if p.is_file())
    damage(file, how)
    with pytest.raises(ValueError, match="unreadable or incomplete") as error:
        training.load_checkpoint(path, Net())
    assert file.name in str(error.value)
    gc.collect()
    assert capfd.readouterr() == ("", "")


def test_orbax_is_not_asked_for_a_damaged_checkpoint(path, monkeypatch):
    """Whatever file it is."""
    monkeypatch.setattr(storage, "_checkpointer", None)
    for file in [p for p in (path / "model").rglob("*") if p.is_file()]:
        content = file.read_bytes()
        damage(file, "truncated")
        with pytest.raises(ValueError, match="the size is wrong"):
            training.load_checkpoint(path, Net())
        file.write_bytes(content)
