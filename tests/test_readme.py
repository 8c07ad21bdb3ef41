"""What the README shows runs, and its figures are those of the committed results."""

import pathlib
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from experiments import readme_tables

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_tables_are_those_of_the_results():
    """No figure is typed by hand: writing the tables again changes nothing."""
    assert "<!-- result: " in README
    assert readme_tables.update(README) == README


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_code_runs(block, capsys):
    """Each block runs with the names that its text speaks of."""
    params = {"w": jax.random.normal(jax.random.key(0), (12, 3))}

    def apply(params, x):
        return x.reshape(len(x), -1) @ params["w"]

    optimizer = optax.sgd(0.1)
    names = {
        "apply": apply,
        "logits_fn": jax.tree_util.Partial(apply, params),
        "params": params,
        "optimizer": optimizer,
        "opt_state": optimizer.init(params),
        "x": jax.random.uniform(jax.random.key(1), (4, 2, 2, 3)),
        "y": jnp.array([0, 1, 2, 0]),
        "key": jax.random.key(2),
    }
    names |= {"jax": jax, "optax": optax, "jr": __import__("jaxrobust")}
    exec(block, names)
    if "jr.training.fit(" in block:
        assert re.search(
            r"one image: \d was seen as \d now as \d", capsys.readouterr().out
        )
        # Without adversarial training it would be near 0.
        assert names["report"].robust_accuracy > 0.5
    elif "print(" in block:
        assert "robust" in capsys.readouterr().out
    else:
        assert bool((names["params"]["w"] != params["w"]).any())


def test_links_and_pictures_exist():
    """Every relative link leads somewhere."""
    links = re.findall(r"\]\(([^)#]+)\)", README)
    relative = [link for link in links if not link.startswith("http")]
    assert relative
    assert [link for link in relative if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("name", ["install and run", "test", "notebooks"])
def test_ci_finds_the_commands(name):
    """`.ci/run` takes the commands from the README by their comments."""
    assert len(re.findall(rf"^    .+  # {name}$", README, re.MULTILINE)) == 1
