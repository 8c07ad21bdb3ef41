"""Make a checkpoint of weights that were trained in PyTorch, for `experiments.evaluate`.

Command   python -m experiments.import_weights FILE.npz --model preact_resnet18
          python -m experiments.evaluate out/import_weights/FILE --eps 8/255

Time      seconds

Out       out/import_weights/FILE, a checkpoint

FILE is a state_dict as .npz or .safetensors; pickles (.pt, .pth) are not read. In PyTorch:

    state = torch.load("weights.pth", map_location="cpu", weights_only=True)
    numpy.savez("weights.npz", **{k: v.numpy() for k, v in state.items()})

What weights do not show (activation, input normalisation outside the network, a variant of
the shortcut) a probe does: images [N, C, H, W] and the logits of the network in PyTorch,

    numpy.savez("probe.npz", x=x.numpy(), logits=model.eval()(x).detach().numpy())

with --probe probe.npz the import fails where our logits are others. docs/weights.md
"""

import dataclasses
import hashlib
import pathlib
import zipfile
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxrobust as jr
from experiments import _common

# Relative to the largest logit: sums of some thousand products in another order.
TOLERANCE = 1e-4

OPTIONS = ("width", "depth", "num_blocks")
OPTIONS += ("activation", "final_norm", "activated_shortcut")


@dataclasses.dataclass(frozen=True)
class Config:
    """Import weights of PyTorch."""

    file: tyro.conf.Positional[pathlib.Path]
    """The .npz or .safetensors file of the state_dict."""
    model: str
    """The architecture, a name in `jaxrobust.models.NAMES`."""
    num_classes: int = 10
    input_shape: tuple[int, int, int] | None = None
    """Height, width, channels. Default: 32 32 3 for residual networks, else 28 28 1."""
    mean: tuple[float, ...] | None = None
    """Channel means by which inputs were normalised, where the file has none."""
    std: tuple[float, ...] | None = None
    """Their standard deviations. Default, with --mean absent: raw pixels."""
    width: int | None = None
    """Argument of the architecture, as the next ones, where its default does not fit."""
    depth: int | None = None
    num_blocks: int | None = None
    activation: Literal["relu", "silu"] | None = None
    final_norm: bool | None = None
    activated_shortcut: bool | None = None
    """False: as in Wong 2020 and Andriushchenko 2020, with --final-norm False."""
    probe: pathlib.Path | None = None
    """An .npz file with images x [N, C, H, W] and PyTorch's logits of them."""
    dataset: str | None = None
    """What to evaluate on, a name of `jr.data.NAMES`."""
    out: pathlib.Path | None = None
    """The checkpoint. Default: out/import_weights/FILE, without its suffix."""


def main(config: Config) -> Any:
    """Read, check, write the checkpoint; returns the model."""
    out = config.out or pathlib.Path("out/import_weights") / config.file.stem
    spec = _spec(config)
    state = jr.models.read_state_dict(config.file)
    options = {name: value for name, value in spec.items() if name != "name"}
    model: Any = jr.models.from_torch(
        state, config.model, source=str(config.file), **options
    )
    if config.probe is not None:
        _check(model, config.probe)
    if config.model != "linear":
        print(
            f"inputs: {model.normalization or 'raw pixels; else give --mean and --std'}"
        )
        # Said in numbers, since `create` takes CIFAR-10's for three channels.
        channels = spec["input_shape"][-1]
        raw = jr.models.Normalization((0.0,) * channels, (1.0,) * channels)
        spec["normalization"] = dataclasses.asdict(model.normalization or raw)
    metadata = {
        "model": spec,
        "source": config.file.name,
        "sha256": hashlib.sha256(config.file.read_bytes()).hexdigest(),
        **({} if config.dataset is None else {"dataset": config.dataset}),
    }
    jr.training.save_checkpoint(out, model, metadata)
    print(f"wrote {out}: python -m experiments.evaluate {out} --eps 8/255")
    return model


def _spec(config: Config) -> dict[str, Any]:
    """Return the arguments of `jr.models.create`."""
    if (config.mean is None) != (config.std is None):
        raise ValueError("--mean and --std: give both or neither.")
    default = (32, 32, 3) if "resnet" in config.model else (28, 28, 1)
    spec: dict[str, Any] = {
        "name": config.model,
        "input_shape": config.input_shape or default,
        "num_classes": config.num_classes,
    }
    given = {name: getattr(config, name) for name in OPTIONS}
    spec |= {name: value for name, value in given.items() if value is not None}
    if config.mean is not None:
        spec["normalization"] = {"mean": config.mean, "std": config.std}
    return spec


def _check(model: Any, path: pathlib.Path) -> None:
    """Raise unless the logits are those that PyTorch has computed."""
    try:
        with np.load(path, allow_pickle=False) as file:
            x, expected = file["x"], file["logits"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"--probe {path}: needed is an .npz file with x [N, C, H, W] and logits "
            f"[N, classes]: {error}"
        ) from error
    images = jnp.asarray(x.transpose(0, 2, 3, 1), jnp.float32)
    logits = np.asarray(jax.jit(lambda f, x: f(x))(jr.models.logits_fn(model), images))
    if logits.shape != expected.shape:
        raise ValueError(f"--probe: logits {expected.shape}, ours are {logits.shape}.")
    difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
    if not difference <= TOLERANCE:
        raise ValueError(
            f"the logits differ by {difference:.2g} of the largest from PyTorch's: the "
            "weights fit, so look at what they do not show: --mean and --std, "
            "--activation, --activated-shortcut False; docs/weights.md."
        )
    print(f"logits: as PyTorch's, to {difference:.1g} of the largest")


if __name__ == "__main__":
    with _common.friendly_errors(resumes=False):
        main(_common.parse(Config, "import_weights", __doc__))
