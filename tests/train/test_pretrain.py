"""Pretraining: rows that teach the mixture, never a held-out problem, the same twice."""

import json

import numpy as np
import pytest

from polopt.errors import PoloptError, UsageError
from polopt.models import base
from polopt.tasks import load_task
from polopt.train import pretrain
from polopt.train.config import PretrainConfig

CONFIG = PretrainConfig(steps=100, batch=40)


@pytest.fixture(scope="module")
def problems():
    return pretrain.problem_stream(CONFIG)


@pytest.fixture(scope="module")
def tokenizer():
    return base.load()[2]


@pytest.fixture(scope="module")
def rows(problems, tokenizer):
    return pretrain.supervised_rows(problems, tokenizer, CONFIG)


def read(rows, tokenizer):
    """(question, completion) of each row, from its tokens and weights alone."""
    for tokens, weight in zip(rows.tokens, rows.weight, strict=True):
        first, last = np.flatnonzero(weight)[[0, -1]]
        assert (weight[first : last + 1] > 0).all()
        assert tokens[last] == tokenizer.eos_ids[0]
        prompt = tokenizer.decode(tokens[:first], control=True)
        assert prompt.startswith("<bos>")
        assert prompt.endswith("\n")
        yield prompt[5:-1], tokenizer.decode(tokens[first : last + 1])


def test_no_row_shows_a_held_out_problem(rows, tokenizer):
    outside = {problem.prompt for problem in load_task(held_out=pretrain.HELD_OUT).held_out}
    assert len(outside) == 512
    shown = {question for question, _ in read(rows, tokenizer)}
    assert len(shown) > 2500
    assert not outside & shown


def test_rows_are_worked_rightly_or_answered_carelessly_in_the_stated_shares(
    rows, problems, tokenizer
):
    errors, worked = [], []
    for i, (question, text) in enumerate(read(rows, tokenizer)):
        problem = problems(i)
        assert question == problem.prompt
        steps, _, answer = text.removesuffix("</answer>").partition("<answer>")
        worked.append(steps != "")
        if not steps:
            errors.append(int(answer) - int(problem.answer))
            continue
        assert answer == problem.answer
        for step in steps.split("; "):
            sum_, _, result = step.partition(" = ")
            assert eval(sum_) == int(result)
    assert np.mean(worked) == pytest.approx(pretrain.WORKED_ROWS, abs=0.02)
    assert np.mean(np.array(errors) == 0) == pytest.approx(pretrain.DIRECT_RIGHT, abs=0.05)
    assert set(errors) == {-3, -2, -1, 0, 1, 2, 3}


def test_weights_of_the_first_token_set_the_mixture(rows, tokenizer):
    first = np.array([np.flatnonzero(weight)[0] for weight in rows.weight])
    place = np.arange(len(first)), first
    direct = rows.tokens[place] == tokenizer.token_id("<answer>")
    weight = rows.weight[place]
    share = weight[~direct].sum() / weight.sum()
    assert share == pytest.approx(pretrain.WORKED_SHARE, abs=0.03)
    rest = rows.weight.copy()
    rest[place] = 0
    assert set(np.unique(rest)) == {0.0, 1.0}


def test_batches_hold_every_row_once_with_little_padding(rows):
    batches = list(pretrain.length_classes(rows, CONFIG))
    assert len(batches) == 100
    widths = {tuple(block.tokens.shape for block in batch) for batch in batches}
    assert len(widths) == 1  # one compiled program
    total = sum(block.weight.sum(dtype=np.float64) for batch in batches for block in batch)
    assert total == pytest.approx(rows.weight.sum(dtype=np.float64))
    filled = sum((b.tokens != 0).sum() for batch in batches for b in batch)
    assert filled == (rows.tokens != 0).sum()
    room = sum(block.tokens.size for batch in batches for block in batch)
    assert filled / room > 0.85  # one width for all rows: 0.65


def test_a_model_has_the_size_that_is_asked_for():
    assert pretrain.shape() == base.load()[0].config
    small = pretrain.shape(2, 64)
    assert (small.num_layers, small.hidden_size, small.num_heads) == (2, 64, 2)
    assert (small.vocab_size, small.max_length) == (512, 160)
    for size in (0, 40):
        with pytest.raises(UsageError, match="width must be a multiple of 32, at least 32"):
            PretrainConfig(width=size)


@pytest.mark.slow
def test_a_short_run_is_repeatable_and_makes_a_model_that_loads(tmp_path):
    said = []
    folders = [
        pretrain.pretrain(
            PretrainConfig(out=str(tmp_path / name), steps=12, batch=8, seed=seed), said.append
        )
        for name, seed in (("one", 0), ("two", 0), ("three", 1))
    ]
    one, two, three = ((folder / "weights.safetensors").read_bytes() for folder in folders)
    assert one == two != three
    assert base.load(folders[2])[2] == base.load()[2]  # one tokenizer, whatever the seed
    model, _, tokenizer = base.load(folders[0])
    assert model.config == pretrain.shape()
    assert tokenizer.vocab_size == pretrain.VOCABULARY
    assert tokenizer == base.load()[2]  # the embedded one comes from the same words
    curve = [json.loads(line) for line in (folders[0] / "pretrain.jsonl").read_text().splitlines()]
    assert curve[-1]["step"] == 12
    assert any("loss" in line for line in said)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "gcd"}, "for chain_sum only: not for gcd"),
        ({"batch": 6}, "batch is 6: give a multiple of 4"),
    ],
)
def test_what_cannot_be_pretrained_is_refused_at_once(tmp_path, change, words):
    with pytest.raises(PoloptError, match=words):
        pretrain.pretrain(PretrainConfig(out=str(tmp_path / "m"), steps=4, **change))
