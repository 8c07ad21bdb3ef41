"""`autoattack("fast")` against `autoattack()`: what each leaves, and what it costs.

Command   python -m experiments.fast_evaluation mnist_pgd FILE.npz --data-dir DIR

Time      8 minutes for an MNIST network on 2 cores, with other work beside it; half an hour
          and more for one of CIFAR-10

Expected  "fast" leaves about what "standard" does (one or two of 1,000 images more or less,
          on the first networks tried), at a sixth of the gradients and a tenth of the
          forward passes

Networks are the names of `jaxrobust.models.SHIPPED`, and files of weights that
`experiments.published_weights` reads, on MNIST at l_inf 0.3. Both evaluations run in one
process, one after the other; a run that was stopped goes on with what is missing.
"""

import dataclasses
import pathlib
from typing import Any

import tyro

import jaxrobust as jr
from experiments import _common, _runs, _training, published_weights

_CHOICE = (
    f"give one of {', '.join(jr.models.SHIPPED)}, or an .npz file of weights as "
    "experiments.published_weights reads them."
)
VERSIONS = ("autoattack", "autoattack-fast")


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare the two evaluations on some networks."""

    networks: tyro.conf.Positional[tuple[str, ...]]
    """Names of weights that come with jaxrobust, or files of weights."""
    data_dir: pathlib.Path | None = None
    """Where tensorflow-datasets keeps its data; default: TFDS_DATA_DIR."""
    num_test: int = 1000
    """Evaluate on the first so many test examples."""
    seed: int = 1
    out: pathlib.Path = pathlib.Path("out/fast_evaluation")
    restart: bool = False
    """Throw away what an earlier run has left in --out."""


def main(config: Config) -> dict[str, Any]:
    """Evaluate; returns what is written to `result.json`."""
    if not config.networks:
        raise ValueError("name a network: " + _CHOICE)
    settings = _common.config_of(config)
    del settings["networks"]  # more of them may come
    _runs.claim(config.out, settings, restart=config.restart)
    provenance = _common.provenance()
    rows = {}
    for network in config.networks:
        name, model, dataset, eps = _read(network)
        data = jr.data.load(dataset, data_dir=config.data_dir)
        rows[name] = {
            version: _training.attacked(
                model,
                data.subset(None, config.num_test),
                version,
                threat=jr.Linf(eps),
                seed=config.seed,
                out=config.out / name,
                title=name,
            )
            for version in VERSIONS
        }
        rows[name]["ratios"] = _ratios(*(rows[name][version] for version in VERSIONS))
    written = {
        "experiment": "fast_evaluation",
        "config": settings,
        "networks": rows,
        "seconds": sum(row[v]["seconds"] for row in rows.values() for v in VERSIONS),
        **provenance,
    }
    _common.write_json(config.out / "result.json", written)
    _print(written)
    return written


def _read(network: str) -> tuple[str, Any, str, float]:
    """Return name, model, data set and eps of a network."""
    if network in jr.models.SHIPPED:
        card = jr.models.card(network)
        return network, jr.models.load(network), card["data"], card["eps"]
    path = pathlib.Path(network)
    if path.suffix != ".npz":
        raise ValueError(f"{network}: {_CHOICE}")
    return path.stem, published_weights.load_weights(path), "mnist", 0.3


def _ratios(standard: dict[str, Any], fast: dict[str, Any]) -> dict[str, float]:
    """Return standard / fast; the evaluations are those that the hardware performed."""
    pairs: dict[str, tuple[float, float]] = {
        name: (standard["cost"][name], fast["cost"][name])
        for name in ("gradients", "forwards")
    }
    pairs["seconds"] = (standard["seconds"], fast["seconds"])
    return {name: round(ours / theirs, 2) for name, (ours, theirs) in pairs.items()}


def _print(result: dict[str, Any]) -> None:
    table = _common.new_table("left by standard and fast, and standard / fast")
    columns = ("network", "standard", "fast", "gradients", "forwards", "seconds")
    for column in columns:
        table.add_column(column)
    for name, row in result["networks"].items():
        left = [f"{row[version]['robust_accuracy']:.2%}" for version in VERSIONS]
        ratios = [f"{row['ratios'][column]:.1f}" for column in columns[3:]]
        table.add_row(name, *left, *ratios)
    _common.console.print(table)


if __name__ == "__main__":
    with _common.friendly_errors():
        main(_common.parse(Config, "fast_evaluation", __doc__))
