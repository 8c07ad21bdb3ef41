"""A linear classifier of 0 against 1 and its exact adversary: why linearity is brittle.

Command   python -m experiments.linear_mnist --data-dir DIR        (or --dataset digits)

Time      about a minute on 2 cores

Expected  the figures of adversarial-ml-tutorial.org, chapter 2, at eps = 0.2: standard
          training 0.04% error and 82.8% under the exact attack, robust training 0.3% and
          2.5%. What the attack adds to the margin is eps ||w||_1, what random signs of
          the same size add is eps ||w||_2 (rms): their ratio grows like the square root
          of the dimension, up to sqrt(d) where all weights are equally large.

The adversary moves each pixel by eps against the sign of its weight; no other
perturbation in the l_inf ball does more. Robust training minimises the exact worst case,
log(1 + exp(-(y (w.x + b) - eps ||w||_1))), which is what FGSM training is here.
"""

import dataclasses
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tyro

import jaxrobust as jr
from experiments import _common

LECTURE = {
    "standard": {"clean": 0.04, "exact": 82.8},
    "robust": {"clean": 0.3, "exact": 2.5},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Train linear classifiers of 0 against 1; attack them exactly."""

    dataset: str = "mnist"
    data_dir: pathlib.Path | None = None
    """Where tensorflow-datasets keeps its data; default: TFDS_DATA_DIR."""
    out: pathlib.Path = pathlib.Path("out/linear_mnist")
    eps: _common.Number = 0.2
    num_seeds: int = 5
    num_epochs: int = 10
    batch_size: int = 100
    learning_rate: float = 1.0
    pictures: tyro.conf.OmitArgPrefixes[_common.Pictures] = _common.PICTURES


def logits_fn(params: dict, x: jax.Array) -> jax.Array:
    """Return [0, w.x + b]: a binary classifier as one of two classes."""
    z = x.reshape(x.shape[0], -1) @ params["w"] + params["b"]
    return jnp.stack([jnp.zeros_like(z), z], axis=-1)


def train(x, y, objective, config: Config, seed: int) -> dict:
    """Minimise the objective by SGD; the whole loop."""
    keys = jax.random.split(jax.random.key(seed), config.num_epochs + 1)
    num_pixels = x[0].size
    # PyTorch's default for a linear layer, as in the tutorial.
    bound = num_pixels**-0.5
    w = jax.random.uniform(keys[0], (num_pixels,), minval=-bound, maxval=bound)
    params = {"w": w, "b": jnp.zeros(())}
    optimizer = optax.sgd(config.learning_rate)

    def step(carry, rows):
        params, state = carry

        def loss(params):
            frozen = jax.lax.stop_gradient(params)
            trained_fn = jax.tree_util.Partial(logits_fn, params)
            attacked_fn = jax.tree_util.Partial(logits_fn, frozen)
            return objective(trained_fn, attacked_fn, x[rows], y[rows])[0]

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def epoch(carry, key):
        order = jax.random.permutation(key, len(x))
        num_steps = len(x) // config.batch_size
        rows = order[: num_steps * config.batch_size].reshape(num_steps, -1)
        return jax.lax.scan(step, carry, rows)[0]

    carry = params, optimizer.init(params)
    for key in keys[1:]:
        carry = epoch(carry, key)
    return carry[0]


def errors(params: dict, x, y, threat: jr.Linf) -> dict[str, float]:
    """Return clean and exact worst-case error in percent, and the norms behind them."""
    weights = jnp.stack([jnp.zeros_like(params["w"]), params["w"]], axis=1)
    bias = jnp.stack([jnp.zeros(()), params["b"]])
    exact_attack = jr.certify.linear_worst_case
    clean = jr.losses.margin(logits_fn(params, x), y)
    _, attacked = exact_attack(weights, bias, x, y, threat=threat)
    return {
        "clean": 100 * float((clean >= 0).mean()),
        "exact": 100 * float((attacked >= 0).mean()),
        "margin": float(jnp.abs(clean).mean()),
        "shift": float(threat.eps * jnp.abs(params["w"]).sum()),
        "random_shift": float(threat.eps * jnp.linalg.norm(params["w"])),
    }


def main(config: Config) -> dict:
    """Run the experiment; returns what is written to `linear_mnist.json`."""
    jr.training.prepare_out(config.out)
    provenance = _common.provenance()
    start = time.monotonic()
    data = jr.data.load(config.dataset, data_dir=config.data_dir)
    x, y = _zeros_and_ones(data, "train")
    x_test, y_test = _zeros_and_ones(data, "test")
    # As in the tutorial, the adversary may leave [0, 1].
    threat = jr.Linf(config.eps, bounds=None)
    objectives = {
        "standard": jr.training.standard(),
        "robust": jr.training.adversarial(jr.FGSM(), threat=threat),
    }
    runs = []
    for seed in range(config.num_seeds):
        for name, objective in objectives.items():
            params = train(x, y, objective, config, seed)
            figures = errors(params, x_test, y_test, threat)
            train_figures = errors(params, x, y, threat)
            gaps = {
                f"{kind}_gap": figures[kind] - train_figures[kind]
                for kind in ("clean", "exact")
            }
            runs.append({"training": name, "seed": seed} | figures | gaps)
    result = {
        "experiment": "linear_mnist",
        "lecture": LECTURE,
        "runs": runs,
        "growth": measure_growth(config, (x, y), (x_test, y_test), threat),
        "num_train": len(x),
        "num_test": len(x_test),
        "config": _common.config_of(config),
        "seconds": round(time.monotonic() - start, 1),
        **provenance,
    }
    _common.write_json(config.out / "linear_mnist.json", result)
    _print(result)
    _save_growth(result, config.out / "growth", config.pictures)
    return result


def _zeros_and_ones(data, split: str) -> tuple[jax.Array, jax.Array]:
    labels = getattr(data, f"y_{split}")
    chosen = labels < 2
    images = data.images(getattr(data, f"x_{split}")[chosen])
    return jnp.asarray(images), jnp.asarray(labels[chosen])


def measure_growth(
    config: Config, train_set, test_set, threat
) -> list[dict[str, float]]:
    """Train at several resolutions: the same pictures, more pixels."""
    side = train_set[0].shape[1]
    rows = []
    for factor in (k for k in (7, 4, 2, 1) if side % k == 0):

        def shrink(x: jax.Array, k: int = factor) -> jax.Array:
            return x.reshape(len(x), side // k, k, side // k, k).mean(axis=(2, 4))

        params = train(
            shrink(train_set[0]), train_set[1], jr.training.standard(), config, seed=0
        )
        figures = errors(params, shrink(test_set[0]), test_set[1], threat)
        rows.append({"dimension": (side // factor) ** 2} | figures)
    return rows


def _print(result: dict) -> None:
    table = _common.new_table(
        f"{result['config']['dataset']} 0 against 1, linear, l_inf, eps = "
        f"{result['config']['eps']}: error in % on {result['num_test']:,} test images, "
        f"mean +- std of {result['config']['num_seeds']} seeds"
    )
    for name in ("training", "clean", "tutorial", "gap", "exact", "tutorial", "gap"):
        side = "left" if name == "training" else "right"
        table.add_column(name, justify=side, no_wrap=True)
    for name, lecture in LECTURE.items():
        runs = [run for run in result["runs"] if run["training"] == name]
        cells = []
        for figure in ("clean", "exact"):
            values = [run[figure] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            gap = statistics.fmean(run[f"{figure}_gap"] for run in runs)
            cells += [f"{statistics.fmean(values):.2f} +- {spread:.2f}"]
            cells += [f"{lecture[figure]:g}", f"{gap:+.2f}"]
        table.add_row(name, *cells)
    _common.console.print(table)
    table = _common.new_table("The same pictures with more pixels, standard training")
    columns = ("pixels", "|w.x + b|", "random signs", "worst case", "ratio")
    for name in (*columns, "sqrt(pixels)", "exact"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result["growth"]:
        ratio = row["shift"] / row["random_shift"]
        figures = (row["margin"], row["random_shift"], row["shift"], ratio)
        figures += (row["dimension"] ** 0.5, row["exact"])
        table.add_row(str(row["dimension"]), *(f"{v:.2f}" for v in figures))
    _common.console.print(table)
    _common.console.print(
        "|w.x + b|: its mean; random signs: eps ||w||_2, the rms change of w.x under "
        "+-eps at random; worst case: eps ||w||_1; exact: error in % under it"
    )


def draw_growth(growth: list[dict[str, float]]) -> np.ndarray:
    """Draw the changes that `measure_growth` has found, and beside them their ratio.

    Args:
      growth: A row for each number of pixels.

    Returns:
      The two axes.
    """
    from jaxrobust.plotting import COLORS
    from jaxrobust.plotting.style import new_axes

    axes = new_axes(1, 2, size=(9.5, 3.8))[0]
    dimension = np.array([row["dimension"] for row in growth])
    found = {name: np.array([row[name] for row in growth]) for name in growth[0]}
    lines = (
        ("shift", r"worst case, $\epsilon\,\|w\|_1$", "o-", "vermillion"),
        ("margin", r"to overcome, mean $|w^\top x + b|$", "s--", "blue"),
        ("random_shift", r"random signs, $\epsilon\,\|w\|_2$", "^:", "green"),
    )
    for name, label, style, color in lines:
        axes[0].plot(dimension, found[name], style, color=COLORS[color], label=label)
    axes[0].set_ylabel(r"change of $w^\top x$ (logit units)")
    axes[0].set_ylim(0, 1.3 * axes[0].get_ylim()[1])  # room for the legend
    axes[1].plot(dimension, dimension**0.5, "--", color="0.5", label=r"$\sqrt{d}$")
    axes[1].plot(
        dimension,
        found["shift"] / found["random_shift"],
        "o-",
        color=COLORS["vermillion"],
        label=r"$\|w\|_1 / \|w\|_2$",
    )
    axes[1].set_ylabel("worst case / random signs")
    axes[1].set_ylim(bottom=0)
    for ax in axes:
        ax.set_xscale("log", base=2)
        names = [f"{round(d**0.5)}x{round(d**0.5)}" for d in dimension]
        ax.set_xticks(dimension, names)
        ax.minorticks_off()
        ax.set_xlabel("input pixels")
        ax.legend(frameon=False, loc="upper left")
    return axes


def _save_growth(result: dict, path: pathlib.Path, pictures: _common.Pictures) -> None:
    matplotlib.use("Agg")
    axes = draw_growth(result["growth"])
    axes[0].figure.suptitle(
        f"{result['config']['dataset']} 0 against 1, linear, "
        rf"$\epsilon$ = {result['config']['eps']}"
    )
    for file in pictures.save(axes[0].figure, path):
        _common.console.print(f"wrote {file}")


if __name__ == "__main__":
    with _common.friendly_errors(resumes=False):
        main(_common.parse(Config, "linear_mnist", __doc__))
