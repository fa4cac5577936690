"""Finding a user's function: what works, and one line for each way in which it cannot."""

from pathlib import Path

import pytest

from polopt.errors import PoloptError
from polopt.tasks.load import load_function
from polopt.tasks.worker import KEYWORDS

REWARDS = Path(__file__).parent / "rewards.py"


def test_by_file_and_by_module(monkeypatch):
    call = {"prompt": "", "completion": "7", "answer": "7", "metadata": {}}
    by_file = load_function(f"{REWARDS}:good", keywords=KEYWORDS)
    assert by_file(**call) == {"exact": True, "short": 0.5}
    monkeypatch.chdir(REWARDS.parent)
    by_module = load_function("rewards:good", keywords=KEYWORDS)
    assert by_module(**call) == by_file(**call)


def test_a_file_can_import_its_neighbour(tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("POINTS = 4.0\n")
    (tmp_path / "mine.py").write_text(
        "from neighbour_of_mine import POINTS\ndef score(**_): return POINTS\n"
    )
    assert load_function(f"{tmp_path}/mine.py:score", keywords=KEYWORDS)() == 4.0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("score", "names nothing: write module:name or path.py:name"),
        (":score", "names nothing"),
        ("rewards.py:", "names nothing"),
        ("no/such/file.py:score", "no file no/such/file.py"),
        ("no_such_module:score", "importing no_such_module raised ModuleNotFoundError"),
        (f"{REWARDS}:goood", "has no 'goood'; did you mean 'good'?"),
        (f"{REWARDS}:not_callable", "not_callable is a float, not a function"),
        (f"{REWARDS}:too_few", "cannot be called with"),
    ],
)
def test_one_line_says_what_is_wrong(spec, words):
    with pytest.raises(PoloptError) as caught:
        load_function(spec, keywords=KEYWORDS)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_with_a_fault_is_named_with_its_fault(tmp_path):
    (tmp_path / "broken.py").write_text("def score(:\n")
    with pytest.raises(PoloptError, match=r"importing .*broken.py raised SyntaxError.*line 1"):
        load_function(f"{tmp_path}/broken.py:score")
