"""What the README shows runs, and its figures are those of the committed results."""

import pathlib
import re

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxrobust as jr
from experiments import readme_tables

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_tables_are_those_of_the_results():
    """No figure is typed by hand: writing the tables again changes nothing."""
    assert "<!-- result: " in README
    assert readme_tables.update(README) == README


BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TRAINS = [pytest.mark.slow]  # half a minute


@pytest.mark.parametrize(
    "block", [pytest.param(b, marks=TRAINS * ("training.fit(" in b)) for b in BLOCKS]
)
def test_code_runs(block, capsys, tmp_path, monkeypatch):
    """Each block runs with the names that its text speaks of."""
    monkeypatch.chdir(tmp_path)
    names = {"jax": jax, "optax": optax, "jr": jr, "data": jr.data.load("digits")}
    weights = jax.random.normal(jax.random.key(0), (12, 3))
    names["logits_fn"] = lambda x: x.reshape(len(x), -1) @ weights
    names["x"] = jax.random.uniform(jax.random.key(1), (4, 2, 2, 3))
    names["y"] = jnp.array([0, 1, 2, 0])
    exec(block, names)
    printed = capsys.readouterr().out
    if "jr.training.fit(" in block:
        assert re.search(r"is a (\d) was seen as a \1 and now as a (?!\1)", printed)
        # Without adversarial training it would be near 0.
        assert names["report"].robust_accuracy > 0.5
        assert {path.name for path in tmp_path.rglob("*")} > {
            "report.json",
            "gallery.png",
        }
    elif "print(" in block:
        assert "robust" in printed
    else:  # the loop: accuracy under the attack of its last batch
        assert names["metrics"]["accuracy"] > 0.5


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
