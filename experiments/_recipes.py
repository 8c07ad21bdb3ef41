"""The recipes of `robustness_table`: how each data set is trained on and attacked."""

import dataclasses
import pathlib
from typing import Literal

import tyro

import jaxrobust as jr
from experiments import _common, _training

DATASETS = Literal["digits", "mnist", "fashion_mnist", "cifar10"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Train three models, attack each, print and draw the table, check its statements."""

    dataset: DATASETS = "digits"
    """Chooses the recipe: the defaults shown are those of this data set."""
    data_dir: pathlib.Path | None = None
    """Where tensorflow-datasets keeps its data; default: TFDS_DATA_DIR."""
    out: pathlib.Path | None = None
    """Directory of checkpoints and results; a run that was stopped resumes there.
    Default: out/robustness_table/DATASET_EPS."""
    restart: bool = False
    """Throw away what an earlier run has left in --out."""
    seed: int = 0
    eps: _common.Number = 0.3
    """Radius of the l_inf ball; inputs are in [0, 1]."""
    train_steps: int = 10
    """PGD steps in training."""
    train_rel_step_size: float = 0.25
    """Length of each, in units of eps."""
    eps_warmup: float = 0.5
    """Share of PGD training in which eps grows from 0; small networks need it."""
    fgsm_eps_warmup: float = 0.0
    """The same of FGSM training, which is the full step from the image as in the paper."""
    test_steps: int = 40
    """PGD steps in evaluation."""
    test_step_size: _common.Number | None = None
    """Length of each, in the units of the data; default: --test-rel-step-size."""
    test_rel_step_size: _common.Number = 1 / 30
    """The same in units of eps."""
    test_restarts: int = 10
    num_train: int | None = None
    """Use the first so many training examples only."""
    num_test: int | None = None
    """Evaluate on the first so many test examples only."""
    num_gap: int = 1000
    """Examples of the training split on which the generalisation gaps are measured."""
    batch_size_test: int | None = None
    recipe: tyro.conf.OmitArgPrefixes[_training.Recipe] = dataclasses.field(
        default_factory=_training.Recipe
    )
    pictures: tyro.conf.OmitArgPrefixes[_common.Pictures] = _common.PICTURES

    @property
    def directory(self) -> pathlib.Path:
        """Where the results go: no two data sets or radii share a place."""
        name = f"{self.dataset}_{self.eps:.3g}"
        return self.out or pathlib.Path("out/robustness_table") / name

    @property
    def attack(self) -> jr.PGD:
        """The PGD of the evaluation, without restarts; its step follows eps."""
        step_size = self.test_step_size
        if step_size is None:
            # Decimal digits, not those of a product: 0.02, not 0.020000000000000004.
            step_size = float(f"{self.test_rel_step_size * self.eps:.12g}")
        return jr.PGD(num_steps=self.test_steps, step_size=step_size)


_MNIST = Config(
    dataset="mnist",
    # As the committed table was measured; without warm-up this network may stay constant.
    fgsm_eps_warmup=0.5,
    recipe=_training.Recipe(
        model="small_convnet",
        num_epochs=10,
        batch_size=100,
        optimizer="adam",
        learning_rate=5e-3,
        num_validation=5000,
    ),
)
RECIPES = {
    "digits": Config(
        dataset="digits",
        eps=0.2,
        test_rel_step_size=0.1,
        recipe=_training.Recipe(
            model="small_convnet",
            num_epochs=40,
            batch_size=50,
            optimizer="adam",
            learning_rate=5e-3,
        ),
    ),
    "mnist": _MNIST,
    "fashion_mnist": dataclasses.replace(
        _MNIST, dataset="fashion_mnist", eps=0.1, test_rel_step_size=0.1
    ),
    # Rice et al. 2020, arXiv:2002.11569, shortened to 30 epochs as in Wong et al. 2020,
    # arXiv:2001.03994; the attack in training is the lecture's 7 steps of 2/255.
    "cifar10": Config(
        dataset="cifar10",
        eps=8 / 255,
        train_steps=7,
        eps_warmup=0.0,
        test_steps=20,
        test_rel_step_size=0.25,
        test_restarts=1,
        recipe=_training.Recipe(
            model="preact_resnet18",
            num_epochs=30,
            batch_size=128,
            learning_rate=0.2,
            weight_decay=5e-4,
            augment=True,
        ),
    ),
}
# The same on two processor cores: `--model small`.
RECIPES["cifar10 small"] = dataclasses.replace(
    RECIPES["cifar10"],
    num_test=None,
    recipe=dataclasses.replace(
        RECIPES["cifar10"].recipe,
        model="small_resnet",
        model_options={"width": 48},
        ema_decay=0.998,
    ),
)
