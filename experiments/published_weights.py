"""AutoAttack on robust MNIST weights that others trained and published.

Command   python -m experiments.published_weights FILE.npz --data-dir DIR

Time      35 minutes of processor time (2 cores), see experiments/results

Expected  for mnist_fast_adversarial_fgsm.npz: 98.50% clean and 82.93% under AutoAttack
          standard at 0.3 on the whole test set (fra31/auto-attack, README), to 0.2 points

The weights are those of locuslab/fast_adversarial (Wong et al. 2020, arXiv:2001.03994),
as NumPy arrays named like the PyTorch state, in PyTorch's layout. From a checkpoint of
https://github.com/locuslab/fast_adversarial (directory MNIST):

    state = torch.load("fgsm.pth", map_location="cpu")
    arrays = {name: value.numpy() for name, value in state.items()}
    numpy.savez("mnist_fast_adversarial_fgsm.npz", **arrays)
"""

import dataclasses
import pathlib
from typing import Literal

import tyro
from flax import nnx

import jaxrobust as jr
from experiments import _common, _examples, evaluate

PUBLISHED = {
    "mnist_fast_adversarial_fgsm": {"clean": 98.50, "robust": 82.93},
    # yaodongyu/TRADES, README.
    "mnist_trades_smallcnn": {"clean": 99.48, "robust": 92.81},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Evaluate published weights with AutoAttack."""

    weights: tyro.conf.Positional[pathlib.Path]
    """The .npz file of the weights."""
    eps: _common.Number = 0.3
    attack: str = "autoattack"
    individually: bool = False
    data_dir: pathlib.Path | None = None
    """Where tensorflow-datasets keeps its data; default: TFDS_DATA_DIR."""
    num_test: int | None = None
    """Evaluate the first so many test examples only."""
    batch_size: int | None = None
    seed: int = 0
    out: pathlib.Path = pathlib.Path("out/published_weights")
    save_every: float = 60.0
    max_seconds: float | None = None
    """Stop after so many seconds with an upper bound; the same command goes on."""
    restart: bool = False
    """Throw away what a killed run has left in --out."""
    threat: Literal["linf", "l2", "l1"] = "linf"
    pictures: tyro.conf.OmitArgPrefixes[_common.Pictures] = _common.PICTURES


def load_weights(path: pathlib.Path) -> nnx.Module:
    """Return the network of Wong et al., or of TRADES, with weights in PyTorch's layout.

    Args:
      path: An npz file with `0.weight`, `0.bias`, ..., `7.bias`; or, of TRADES,
        `feature_extractor.conv1.weight`, ..., `classifier.fc3.bias`.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it holds something else.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"there is no file {path}: the first lines of experiments/published_weights.py "
            "say where the weights come from and how they become an .npz file"
        )
    state = jr.models.read_state_dict(path)
    shape = {"input_shape": (28, 28, 1), "num_classes": 10}
    is_trades = any("feature_extractor" in name for name in state)
    model = "trades_convnet" if is_trades else "small_convnet"
    return jr.models.from_torch(state, model, source=str(path), **shape)


def main(config: Config) -> jr.Report:
    """Evaluate; returns the report."""
    model = load_weights(config.weights)
    data = jr.data.load("mnist", data_dir=config.data_dir).subset(None, config.num_test)
    name = config.weights.stem
    threat = _common.THREATS[config.threat](config.eps)
    examples = _examples.of_test_set(data)
    report = evaluate.run(config, jr.models.logits_fn(model), examples, threat, name)
    is_whole = config.num_test is None and config.attack == "autoattack"
    is_whole &= report.is_finished
    if name in PUBLISHED and is_whole and (config.threat, config.eps) == ("linf", 0.3):
        for kind, figure in PUBLISHED[name].items():
            ours = 100 * getattr(report, f"{kind}_accuracy")
            print(f"{kind:<7} ours {ours:.2f}, published {figure:.2f}")
    return report


if __name__ == "__main__":
    with _common.friendly_errors():
        main(_common.parse(Config, "published_weights", __doc__))
