"""Files with the arrays of a PyTorch `state_dict`, read without executing anything."""

import json
import os
import pathlib
import zipfile

import jax.numpy as jnp
import numpy as np

_PICKLES = (".pt", ".pth", ".pth.tar", ".bin", ".ckpt", ".pkl")
_CONVERT = """\
    state = torch.load("{}", map_location="cpu", weights_only=True)
    numpy.savez("{}.npz", **{{k: v.numpy() for k, v in state.items()}})
"""
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
}
_DTYPES |= {"I64": np.int64, "I32": np.int32, "U8": np.uint8, "BOOL": np.bool_}


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the arrays of a PyTorch `state_dict` that was saved as .npz or .safetensors.

    Args:
        path: the file.

    Returns:
        Arrays by name, as `from_torch` takes them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is of another kind. A .pt or .pth file is a pickle, which could
            execute anything: the message says how PyTorch turns it into an .npz.

    Example:
        >>> import tempfile
        >>> file = tempfile.mkdtemp() + "/weights.npz"
        >>> np.savez(file, **{"fc.weight": np.zeros((10, 4))})
        >>> read_state_dict(file)["fc.weight"].shape
        (10, 4)
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.name.endswith(_PICKLES):
        raise ValueError(
            f"{path} is a pickle, which could execute anything. Convert it in PyTorch:\n"
            f"{_CONVERT.format(path.name, path.stem)}"
            'where state["state_dict"], say, may be what holds the arrays.'
        )
    read = {".npz": _read_npz, ".safetensors": _read_safetensors}.get(path.suffix)
    if read is None:
        raise ValueError(f"{path} ends neither in .npz nor in .safetensors")
    try:
        return read(path)
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is no {path.suffix} file of arrays, or damaged: {error}"
        ) from error


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read 8 bytes, the length of a header in JSON; then raw data, little-endian."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        first, last = (begin + offset for offset in entry["data_offsets"])
        values = np.frombuffer(data[first:last], _DTYPES[entry["dtype"]])
        arrays[name] = values.reshape(entry["shape"])
    return arrays
