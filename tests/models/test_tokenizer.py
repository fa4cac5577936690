"""The tokenizer: lossless on any text, digit by digit, and deaf to control tokens in text."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polopt.errors import PoloptError
from polopt.models.base import EMBEDDED
from polopt.models.tokenizer import Tokenizer, train_tokenizer

FILE = EMBEDDED / "tokenizer.json"
TOKENIZER = Tokenizer.from_file(FILE)


@given(st.text())
@example("<pad><bos><eos><answer>7</answer>")
@example("👩‍👩‍👧 עברית \u202e ٣٤ ² \x00\x1f\r\n\t  \u00a0\u3000")
@example("e\u0301 \u00e9 \ufb01")  # no normalisation
@example("\U0010ffff\ufffd\ufffe")
def test_any_text_comes_back_exactly(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(0 <= i < TOKENIZER.vocab_size for i in ids)
    assert TOKENIZER.encode_all([text, text]) == [ids, ids]


def test_a_long_text_without_spaces_comes_back():
    text = "añ" * 50_000
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.integers(0, 10**12))
def test_each_digit_is_a_token(number):
    assert [TOKENIZER.decode([i]) for i in TOKENIZER.encode(str(number))] == list(str(number))


def test_text_never_becomes_a_control_token_unless_asked():
    control = {TOKENIZER.pad_id, TOKENIZER.token_id("<bos>"), *TOKENIZER.eos_ids}
    assert not control & set(TOKENIZER.encode("<bos>ab<eos><pad>"))
    asked = TOKENIZER.encode("<bos>ab<eos>", control=True)
    assert asked == [TOKENIZER.token_id("<bos>"), *TOKENIZER.encode("ab"), *TOKENIZER.eos_ids]
    assert TOKENIZER.decode(asked) == "ab"
    assert TOKENIZER.decode(asked, control=True) == "<bos>ab<eos>"


def test_answer_markers_are_single_tokens_that_stay_in_the_text():
    ids = TOKENIZER.encode("<answer>7</answer>")
    assert ids[0], ids[-1] == (TOKENIZER.token_id("<answer>"), TOKENIZER.token_id("</answer>"))
    assert len(ids) == 3
    assert TOKENIZER.decode(ids) == "<answer>7</answer>"


def test_the_prompt_of_the_default_task_is_short():
    question = "State the final answer to the following arithmetic problem: 98 + 93 - 77 ="
    ids = TOKENIZER.prompt(question)
    assert TOKENIZER.decode(ids, control=True) == f"<bos>{question}\n"
    assert len(ids) == 11


def test_ids_that_break_a_character_are_replaced_not_lost():
    ids = TOKENIZER.encode("a\U0001f9ee")
    assert TOKENIZER.decode(ids[:-1]).startswith("a\ufffd")


@pytest.mark.parametrize("wrong", [-1, 512])
def test_ids_outside_the_vocabulary_are_refused(wrong):
    assert TOKENIZER.vocab_size == 512
    with pytest.raises(PoloptError, match=rf"token id {wrong} is outside \[0, 512\)"):
        TOKENIZER.decode([5, wrong])


def test_half_a_character_is_refused_by_its_place():
    with pytest.raises(PoloptError, match=r"lone surrogate '\\ud800' at character 2"):
        TOKENIZER.encode("ab\ud800")
    with pytest.raises(PoloptError, match="cannot encode a bytes: give a string"):
        TOKENIZER.encode(b"ab")


def test_equal_content_is_an_equal_tokenizer_and_the_digest_tells_others_apart():
    again = Tokenizer(FILE.read_text(encoding="utf-8"))
    assert again == TOKENIZER
    assert hash(again) == hash(TOKENIZER)
    assert again.digest == TOKENIZER.digest
    others = [
        Tokenizer(TOKENIZER.source, prompt_end=" "),
        Tokenizer(TOKENIZER.source, eos=("<eos>", "</answer>")),
        Tokenizer(TOKENIZER.source + " "),
    ]
    assert len({TOKENIZER.digest, *(other.digest for other in others)}) == 4
    assert others[1].eos_ids == (2, 4)


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(PoloptError, match=r"none.json: cannot read the tokenizer"):
        Tokenizer.from_file(tmp_path / "none.json")
    with pytest.raises(PoloptError, match=r"not a tokenizer.json"):
        Tokenizer("{}")
    with pytest.raises(PoloptError, match="no token '<end>'"):
        Tokenizer(TOKENIZER.source, eos=("<end>",))
    with pytest.raises(PoloptError, match="eos is empty"):
        Tokenizer(TOKENIZER.source, eos=())


def test_training_is_deterministic_and_merges_what_repeats():
    texts = [f"Add up: {i}, {i * 7 % 97}" for i in range(50)]
    one, two = train_tokenizer(texts, 269), train_tokenizer(texts, 269)
    assert one == two
    assert one.vocab_size == 269
    assert [one.token_id(t) for t in ("<pad>", "<bos>", "<eos>", "<answer>", "</answer>")] == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert len(one.encode("Add up: ")) == 1
    kinds = {t["content"]: t["special"] for t in json.loads(one.source)["added_tokens"]}
    assert kinds == {
        "<pad>": True,
        "<bos>": True,
        "<eos>": True,
        "<answer>": False,
        "</answer>": False,
    }
