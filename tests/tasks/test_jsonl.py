"""Files of prompts and answers: the split, the order, and every malformed line by its number."""

import json
import random

import pytest

from polopt.errors import PoloptError
from polopt.tasks import jsonl_task, load_task

GOOD = '{"prompt": "1 + 1 =", "answer": "2"}'


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def numbered(count):
    return [{"prompt": f"question {i}", "answer": str(i), "level": i % 3} for i in range(count)]


def prompts(examples):
    return {example.prompt for example in examples}


def train_prompts(task):
    return {task.train(i).prompt for i in range(task.size)}


def test_the_split_is_a_partition_of_about_the_asked_share(tmp_path):
    task = jsonl_task(write(tmp_path / "a.jsonl", numbered(2000)), held_out=0.2)
    outside, inside = prompts(task.held_out), train_prompts(task)
    assert not outside & inside
    assert len(outside | inside) == 2000 == len(task.held_out) + task.size
    assert 0.17 < len(outside) / 2000 < 0.23
    assert [example.index for example in task.held_out] == list(range(len(task.held_out)))


def test_a_prompt_stays_on_its_side_when_the_file_changes(tmp_path):
    rows = numbered(300)
    before = jsonl_task(write(tmp_path / "a.jsonl", rows[:200]))
    random.Random(0).shuffle(rows)
    after = jsonl_task(write(tmp_path / "b.jsonl", rows))
    assert prompts(before.held_out) <= prompts(after.held_out)
    assert train_prompts(before) <= train_prompts(after)


def test_copies_of_a_prompt_are_on_one_side(tmp_path):
    rows = [{"prompt": f"question {i % 40}", "answer": str(i)} for i in range(400)]
    task = jsonl_task(write(tmp_path / "a.jsonl", rows), held_out=0.3)
    assert not prompts(task.held_out) & train_prompts(task)
    assert len(task.held_out) + task.size == 400


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_both_sides_have_a_prompt_whatever_the_share(tmp_path, share):
    task = jsonl_task(write(tmp_path / "a.jsonl", numbered(5)), held_out=share)
    assert task.held_out
    assert task.size


def test_each_round_is_a_new_order_of_all_training_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", numbered(50))
    task, size = jsonl_task(path, seed=1), jsonl_task(path).size
    rounds = [[task.train(r * size + i).prompt for i in range(size)] for r in range(3)]
    assert all(set(one) == train_prompts(task) for one in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    again = jsonl_task(path, seed=1)
    assert [again.train(size + i).prompt for i in range(size)] == rounds[1]
    other = jsonl_task(path, seed=2)
    assert [other.train(i).prompt for i in range(size)] != rounds[0]


def test_answers_metadata_and_default_reward(tmp_path):
    path = tmp_path / "odd.jsonl"
    text = '\ufeff{"prompt": "أ 👩‍👧 \\u0000", "answer": " ja ", "tags": [1, {"a": 2}]}\r\n' + GOOD
    path.write_bytes(text.encode())
    task = jsonl_task(path, held_out=0.5)
    rows = {e.prompt: e for e in [*task.held_out, *(task.train(i) for i in range(task.size))]}
    odd = rows["أ 👩‍👧 \x00"]
    assert odd.metadata == {"tags": [1, {"a": 2}]}
    assert task.reward("<answer>ja</answer>", odd) == {"score": 1.0}
    assert task.reward("<answer>nein</answer>", odd) == {"score": 0.0}
    assert task.reward("ja", odd) == {"score": 0.0}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "blank line"),
        ("   ", "blank line"),
        ("{", "not JSON"),
        ('["prompt", "answer"]', "a JSON list, not an object"),
        ("3", "a JSON number, not an object"),
        ("null", "a JSON null, not an object"),
        ('{"prompt": "x"}', "no field 'answer'; it has prompt"),
        ('{"answer": "x"}', "no field 'prompt'; it has answer"),
        ("{}", "no field 'prompt'; it has none"),
        ('{"prompt": 3, "answer": "x"}', "'prompt' is a number, not a string"),
        ('{"prompt": "x", "answer": null}', "'answer' is a null, not a string"),
        ('{"prompt": "x", "answer": ["x"]}', "'answer' is a list, not a string"),
        ('{"prompt": " \\t", "answer": "x"}', "'prompt' is blank"),
        ('{"prompt": "\\ud800", "answer": "x"}', "'prompt' is not valid Unicode"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path, line, words):
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(PoloptError) as caught:
        jsonl_task(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_utf8_are_named_by_their_line(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(GOOD.encode() + b'\n{"prompt": "caf\xe9", "answer": "x"}\n')
    with pytest.raises(PoloptError, match=r"latin.jsonl:2: 'prompt' is not valid Unicode"):
        jsonl_task(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "the file is empty"), (f"{GOOD}\n{GOOD}\n", "one prompt only")],
)
def test_a_file_without_two_prompts_is_refused(tmp_path, content, words):
    path = tmp_path / "few.jsonl"
    path.write_text(content)
    with pytest.raises(PoloptError, match=words):
        jsonl_task(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(PoloptError, match=r"none.jsonl: cannot read: No such file"):
        jsonl_task(tmp_path / "none.jsonl")
    with pytest.raises(PoloptError, match="cannot read: Is a directory"):
        jsonl_task(tmp_path)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 2])
def test_a_share_outside_the_range_is_refused(tmp_path, share):
    with pytest.raises(PoloptError, match="held_out is"):
        jsonl_task(write(tmp_path / "a.jsonl", numbered(3)), held_out=share)


def test_a_file_replaces_the_family_by_name(tmp_path):
    path = write(tmp_path / "mine.jsonl", numbered(200))
    task = load_task(data=path, held_out=5, seed=3)
    assert task.name == "mine"
    assert len(task.held_out) == 5
    assert len(task.settings["sha256"]) == 64
    assert task.train(0) == jsonl_task(path, seed=3).train(0)
