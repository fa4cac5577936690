"""The calculator: its parser against odd calls, its dialogue by hand, its room for every sum."""

import json

import pytest

from polopt.errors import PoloptError
from polopt.models import base
from polopt.tasks import Example, chain_sum, load_task
from polopt.tasks.calculator import calculator_task, environment, evaluate

DESK = environment(4, 2)


def problem(expression, answer=""):
    return Example(prompt="", answer=answer, index=0, metadata={"expression": expression})


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("15 - 43 =", (-28, "")),
        ("15 - 43 = -", (-28, "-")),
        ("; -28 - 75 = -", (-103, "-")),
        ("7*-8=", (-56, "")),
        ("  07 + 3 = 1", (10, "1")),
        ("999999999 + 1 =", (1000000000, "")),
        ("1000000000 + 1 =", None),  # ten digits
        ("15 - 43 - 75 =", None),  # one operation at a time
        ("15 =", None),
        ("=", None),
        ("2 ** 9 =", None),
        ("1 / 2 =", None),
        ("1_0 + 2 =", None),
        ("(1) + 2 =", None),
        ("the 3 + 4 =", None),
        ("3 + 4", None),
        ("__import__('os').getcwd() =", None),
    ],
)
def test_what_the_calculator_takes(call, expected):
    assert evaluate(call) == expected


def test_a_dialogue_by_hand():
    state = DESK.start(problem("15 - 43 - 75 + 2"))
    assert DESK.label(state) == "15 - 43 - 75 + 2 | "
    first = DESK.step(state, "15 - 43 = -")
    assert (first.text, first.rewards, first.done, first.failed) == (
        "28",
        {"tool": pytest.approx(0.1 / 3)},
        False,
        False,
    )
    wasted = DESK.step(first.state, "; 28 - 75 =")  # forgets the sign: worked out, but no step
    assert (wasted.text, wasted.rewards) == ("-47", {"tool": 0.0})
    assert DESK.label(wasted.state) == "-28 - 75 + 2 | -47"
    second = DESK.step(wasted.state, "; -28 - 75 =")
    third = DESK.step(second.state, "; -103 + 2 = -")
    assert (second.text, third.text) == ("-103", "101")
    assert DESK.label(third.state) == "-101 | -101"
    assert DESK.step(third.state, "<answer>-101</answer>").done
    assert DESK.label(state) == "15 - 43 - 75 + 2 | "  # states are never changed


@pytest.mark.parametrize("text", ["43 - 15 = -", "15 - 43 = 2", "what =", "15 - 43 - 75 ="])
def test_a_misused_calculator_ends_the_episode(text):
    reply = DESK.step(DESK.start(problem("15 - 43 - 75")), text)
    assert reply.failed
    assert reply.rewards == {"tool": 0.0}


def test_a_finished_sum_has_no_next_step():
    state = DESK.step(DESK.start(problem("1 + 2")), "1 + 2 =").state
    assert DESK.step(state, "; 3 + 0 =").rewards == {"tool": 0.0}


def test_the_outcome_is_the_number_in_the_tags():
    task = calculator_task({"max_terms": 2}, held_out=1)
    example = problem("15 - 43", "-28")
    assert task.reward("15 - 43 = -28<answer>-28</answer>", example) == {"score": 1.0}
    assert task.reward("15 - 43 = -28", example) == {"score": 0.0}
    assert task.reward("<answer>-28 or so</answer>", example) == {"score": 0.0}


def test_it_is_a_task_by_name_with_the_sums_of_its_family():
    task = load_task("calculator", task_args=["max_terms=3"], held_out=20)
    sums = load_task("chain_sum", task_args=["max_terms=3"], held_out=20)
    assert [e.prompt for e in task.held_out] == [e.prompt for e in sums.held_out]
    assert task.train(5).prompt == sums.train(5).prompt
    assert task.name == "calculator"
    assert json.loads(json.dumps(dict(task.settings)))["family"] == "calculator"
    assert task.environment.max_turns == 4
    with pytest.raises(PoloptError, match="chain_sum has no setting 'max_turns'"):
        load_task("calculator", task_args=["max_turns=3"])


def test_an_ideal_dialogue_fits_for_every_problem():
    """Turns, tokens of a turn and of an observation, and the default max_new_tokens of 32."""
    tokenizer = base.load()[2]
    task = load_task("calculator", held_out=200)
    for example in task.held_out:
        turns, shown = ideal(task, example)
        assert task.reward("".join(turns), example) == {"score": 1.0}
        assert len(turns) <= task.environment.max_turns
        lengths = [len(tokenizer.encode(turn)) for turn in turns]
        assert max(lengths) + 1 <= task.environment.turn_tokens
        assert sum(lengths) + 1 <= 32
        assert all(len(tokenizer.encode(s)) <= task.environment.observation_tokens for s in shown)


def ideal(task, example):
    """The turns of the embedded model's worked steps, the calculator writing every result."""
    turns, shown = [], []
    state = task.environment.start(example)
    earned = 0.0
    for number, step in enumerate(chain_sum.worked(example).split("<")[0].split("; ")):
        call, _, result = step.partition(" = ")
        sign = " = -" if result.startswith("-") else " = "
        text = "; " * (number > 0) + call + sign
        reply = task.environment.step(state, text)
        assert text.endswith("-") * "-" + reply.text == result
        earned += reply.rewards["tool"]
        turns.append(text)
        shown.append(reply.text)
        state = reply.state
    assert earned == pytest.approx(0.1)
    final = f"<answer>{example.answer}</answer>"
    assert task.environment.step(state, final).done
    return [*turns, final], shown
