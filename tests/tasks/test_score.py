"""The reward contract: what is accepted, and the one line for everything that is not."""

import decimal
import fractions
import math

import numpy as np
import pytest

from polopt.errors import PoloptError
from polopt.tasks import Abstained, Example, abstain, score_all, user_reward

EXAMPLE = Example(prompt="3 + 4 =", answer="7", index=17, metadata={"level": 2})
TEXT = "first line\nsecond" + "x" * 100


def returns(value):
    return user_reward(lambda **_: value, "mine:score")


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (1, {"score": 1.0}),
        (True, {"score": 1.0}),
        (-0.0, {"score": 0.0}),
        (1e30, {"score": 1e30}),
        (np.float32(0.5), {"score": 0.5}),
        (np.int64(3), {"score": 3.0}),
        (np.bool_(True), {"score": 1.0}),
        (np.array(0.25), {"score": 0.25}),
        (fractions.Fraction(1, 4), {"score": 0.25}),
        ({"right": 1, "form": np.float64(0.1)}, {"right": 1.0, "form": 0.1}),
    ],
)
def test_numbers_and_named_numbers_are_accepted(value, parts):
    result = returns(value)(TEXT, EXAMPLE)
    assert result == parts
    assert all(type(number) is float for number in result.values())


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (None, "None"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (np.float32("nan"), "nan"),
        ("1.0", "the string '1.0'"),
        (b"1", "string"),
        (1j, "complex"),
        (np.complex64(1), "complex"),
        ([1.0], "list of length 1"),
        (np.ones(3), "ndarray of length 3"),
        (10**400, "huge number"),
        (decimal.Decimal("NaN"), "Decimal"),
        ({}, "empty dict"),
        ({"a": 1.0, "b": None}, "None for component 'b'"),
        ({"a": math.nan}, "nan for component 'a'"),
        ({1: 1.0}, "component name 1"),
        (object(), "object"),
    ],
)
def test_anything_else_is_one_line_that_names_function_and_sample(value, named):
    with pytest.raises(PoloptError) as caught:
        returns(value)(TEXT, EXAMPLE)
    message = str(caught.value)
    assert named in message
    shown = "first line\\nsecond" + "x" * (80 - len("first line\nsecond"))
    assert f'reward function mine:score on sample 17 ("{shown}")' in message
    assert "polopt.tasks.abstain" in message
    assert "\n" not in message


def test_an_exception_keeps_its_type_and_words():
    def fails(**_):
        raise KeyError("no\nunit")

    with pytest.raises(PoloptError) as caught:
        user_reward(fails, "mine:score")("7", EXAMPLE)
    assert str(caught.value) == (
        "reward function mine:score raised KeyError on sample 17 (\"7\"): 'no\\nunit'"
    )
    assert isinstance(caught.value.__cause__, KeyError)


def test_the_function_sees_everything_by_keyword():
    seen = {}
    user_reward(lambda **given: seen.update(given) or 0.0, "f")("seven", EXAMPLE)
    assert seen == {
        "prompt": "3 + 4 =",
        "completion": "seven",
        "answer": "7",
        "metadata": {"level": 2},
    }


def test_abstaining_is_explicit_and_enters_no_column():
    def judge(*, completion, **_):
        return abstain("too short") if len(completion) < 2 else {"a": len(completion), "b": 0.5}

    scores = score_all(user_reward(judge, "judge"), ["xx", "x", "xxx"], [EXAMPLE] * 3)
    assert scores.scored.tolist() == [True, False, True]
    assert scores.parts["a"].tolist() == [2.0, 0.0, 3.0]
    assert scores.parts["b"].tolist() == [0.5, 0.0, 0.5]
    assert scores.reasons == ("too short",)


def test_a_batch_of_abstentions_has_no_components():
    scores = score_all(lambda *_: Abstained("off"), ["a", "b"], [EXAMPLE] * 2)
    assert scores.parts == {}
    assert not scores.scored.any()


def test_components_must_agree_within_a_batch():
    reward = user_reward(lambda *, completion, **_: {completion: 1.0}, "f")
    with pytest.raises(PoloptError, match=r"\['b'\] for sample 17 .* but \['a'\] for sample 17"):
        score_all(reward, ["a", "b"], [EXAMPLE] * 2)


def test_lengths_must_agree():
    with pytest.raises(PoloptError, match="1 completions for 2 examples"):
        score_all(lambda *_: {"score": 1.0}, ["a"], [EXAMPLE] * 2)
