"""What the README shows is run: its snippets, and its two commands are what CI calls."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp

import polopt
from polopt import algorithms
from polopt.cli.table import find_algorithm

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_first_snippet_is_grpo():
    names: dict = {}
    exec(SNIPPETS[0], names)
    shipped = algorithms.grpo()
    assert names["grpo"].reward == shipped.reward
    assert names["grpo"].trajectory == shipped.trajectory
    assert names["grpo"].aggregate == shipped.aggregate


def test_twelve_lines_make_a_method_that_keeps_the_laws(tmp_path):
    lines = [line for line in SNIPPETS[1].splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 12
    (tmp_path / "mine.py").write_text(SNIPPETS[1], encoding="utf-8")
    mine = find_algorithm(f"{tmp_path / 'mine.py'}:mine")
    polopt.testing.check_laws(mine)


def test_the_objective_in_a_foreign_loop():
    def my_model(params, tokens):
        return params["embedding"][tokens] @ params["embedding"].T

    names = {
        "my_model": my_model,
        "params": {"embedding": jax.random.normal(jax.random.key(0), (11, 4))},
        "prompts": [[1, 2]] * 8,
        "completions": [[3, 4]] * 4 + [[5]] * 4,
        "rewards": [1.0] * 4 + [0.0] * 4,
    }
    exec(SNIPPETS[2], names)
    step = jax.tree.map(lambda p, g: p - 0.1 * g, names["params"], names["gradient"])

    def rewarded(params):  # the first token of the completions that earned the reward
        return jax.nn.log_softmax(my_model(params, jnp.array([2])))[0, 3]

    assert rewarded(step) > rewarded(names["params"])
    assert names["info"]["policy/clip_fraction"].value() == 0


def test_ci_calls_the_test_command_of_the_readme():
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    assert commands[0].endswith("polopt train")
    assert "-m pytest" in commands[1]
    assert "grep -m1 -E '^python3 -m venv .*pytest' README.md" in (ROOT / ".ci/run").read_text()
