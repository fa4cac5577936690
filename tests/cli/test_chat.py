import io

import pytest

from polopt.cli import chat
from polopt.cli.app import main
from polopt.errors import PoloptError
from polopt.train.talk import Said


class Echo:
    """Says what was asked, in capitals."""

    remembers = True

    def __init__(self, config):
        self.config, self.asked, self.forgotten = config, [], 0

    def reply(self, text):
        self.asked.append(text)
        if text == "full":
            raise PoloptError("the context is full")
        return Said(text=text.upper(), cut=text == "long")

    def forget(self):
        self.forgotten += 1


def talk(argv, source=""):
    made = []
    stream = source if isinstance(source, io.StringIO) else io.StringIO(source)
    code = chat.run(argv, lambda config: made.append(Echo(config)) or made[0], stream)
    assert code == 0
    return made[0]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    "argv",
    [
        ["m", "what is a nut?", "--seed", "3"],
        ["m", "--seed=3", "what is a nut?"],
        ["--seed", "3", "--model", "m", "--question", "what is a nut?"],
    ],
)
def test_one_question_has_one_answer(capsys, argv):
    made = talk(argv)
    assert (made.config.model, made.config.seed, made.asked) == ("m", 3, ["what is a nut?"])
    assert capsys.readouterr().out == "WHAT IS A NUT?\n"


def test_questions_come_through_a_pipe(capsys):
    made = talk(["m"], "one\n\ntwo\x1b[2J\nlong\n")
    assert made.asked == ["one", "two\x1b[2J", "long"]
    assert capsys.readouterr().out == "ONE\nTWO\ufffd[2J\nLONG ...\n"


def test_a_terminal_is_asked_until_it_ends(capsys, monkeypatch):
    lines = iter(["one", "", "/new", "full", "two"])

    def ask(prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", ask)
    made = talk(["m"], Terminal())
    out, err = capsys.readouterr()
    assert made.asked == ["one", "full", "two"]
    assert made.forgotten == 2
    assert out == "ONE\nTWO\n\n"
    assert "polopt: the context is full; what was said is forgotten\n" in err


def test_an_interrupt_ends_it(capsys, monkeypatch):
    def ask(prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", ask)
    talk(["m"], Terminal())
    assert capsys.readouterr().out == "\n"


def test_a_third_word_is_not_understood(capsys):
    assert main(["chat", "m", "one", "two"]) == 2
    assert "unexpected argument 'two'" in capsys.readouterr().err
