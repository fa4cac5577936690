"""The pages of docs/ are what the code writes today, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

from polopt import aggregate, reward, trajectory
from polopt.describe.pages import factories, pages

DOCS = Path(__file__).parents[2] / "docs"
PAGES = pages()


@pytest.mark.parametrize("name", PAGES)
def test_a_written_page_is_up_to_date(name):
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name], (
        "run: python -m polopt.describe docs"
    )


@pytest.mark.parametrize("side", ["reward", "trajectory"])
def test_every_piece_has_an_entry(side):
    home = {"reward": reward, "trajectory": trajectory}[side]
    pieces = [name for name in home.__all__ if hasattr(getattr(home, name), "card")]
    page = PAGES[f"{side}_side.md"]
    assert sorted(re.findall(r"^### (\w+)$", page, re.MULTILINE)) == sorted(pieces)


def test_an_entry_says_what_a_piece_is():
    entry = PAGES["trajectory_side.md"].partition("### kl_penalty\n")[2].partition("\n### ")[0]
    assert "```python\nkl_penalty(estimator=k3, coefficient=0.04, to=logp_ref" in entry
    assert "- **needs**: [`logp_ref`](columns.md#logp_ref)" in entry
    assert "[`grpo`](methods.md#grpo)" in entry
    assert "`reference_drift` (the policy leaves" in entry


def test_every_piece_has_a_purpose_a_formula_and_a_source():
    for side in ("reward", "trajectory", "aggregate"):
        for factory in factories(side):
            card = factory.card
            assert card.purpose.endswith("."), factory.__name__
            assert card.formula, factory.__name__
            assert card.source, factory.__name__
    assert "token_mean" in vars(aggregate)


def anchors(text):
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
    return made | set(re.findall(r'<a id="(\w+)">', text))


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_lead_somewhere(page):
    text = re.sub(r"^    .*$", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    for target in set(re.findall(r"\]\((?!https?:)([^)]+)\)", text)):
        place, _, anchor = target.partition("#")
        file = (DOCS / place).resolve() if place else DOCS / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target
