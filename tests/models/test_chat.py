"""Chat templates: real ones against transformers, and hostile ones."""

import json
import pathlib
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import chats
from polopt.errors import PoloptError
from polopt.models.sandbox import render
from polopt.models.tokenizer import Tokenizer

FROZEN = pathlib.Path(__file__).parents[1] / "public" / "frozen" / "chat.json"
PUBLIC = json.loads(FROZEN.read_text(encoding="utf-8"))
SOURCE = chats.source()
SAID = {**chats.CONVERSATIONS, **chats.INTRUDERS}


def tokenizer_of(name, template=None, **options):
    bos, eos = chats.ENDS[name]
    template = PUBLIC["templates"][name] if template is None else template
    options = {"date": PUBLIC["date"]} | options
    return Tokenizer(SOURCE, eos=(eos,), bos=bos, chat_template=template, **options)


@pytest.mark.parametrize("conversation", SAID)
@pytest.mark.parametrize("name", PUBLIC["ids"])
def test_ids_are_those_of_transformers(name, conversation):
    tokenizer = tokenizer_of(name)
    for reply, expected in zip((False, True), PUBLIC["ids"][name][conversation], strict=True):
        if expected is None:
            with pytest.raises(PoloptError, match="cannot be rendered: it says: ") as error:
                tokenizer.chat(SAID[conversation], reply=reply)
            assert "\n" not in str(error.value)
        else:
            assert tokenizer.chat(SAID[conversation], reply=reply) == expected


@pytest.mark.parametrize("name", PUBLIC["ids"])
def test_a_prompt_is_the_question_of_a_user(name):
    tokenizer = tokenizer_of(name)
    assert tokenizer.prompt("What is 2+2?") == PUBLIC["ids"][name]["question"][1]


@pytest.mark.parametrize("name", PUBLIC["masks"])
@pytest.mark.parametrize("conversation", PUBLIC["masks"]["qwen3"])
def test_assistants_turns_are_those_that_trl_trains_on(name, conversation):
    # Its marks take in the line's end around a turn where a template has it inside of the tag.
    tokenizer = tokenizer_of(name, PUBLIC["training"][name])
    public = PUBLIC["masks"][name][conversation]
    ids, mask = tokenizer.chat_turns(chats.CONVERSATIONS[conversation])
    assert ids == public["ids"]
    assert all(theirs for ours, theirs in zip(mask, public["mask"], strict=True) if ours)
    rest = [i for i, m, theirs in zip(ids, mask, public["mask"], strict=True) if theirs and not m]
    assert {tokenizer.decode([i]) for i in rest} <= {"\n"}
    assert name != "llama3" or not rest
    turns = [m["content"] for m in chats.CONVERSATIONS[conversation] if m["role"] == "assistant"]
    end = tokenizer.eos[0]
    written = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m], control=True)
    assert written.replace("<think>\n\n</think>\n\n", "") == "".join(t + end for t in turns)


def test_a_template_that_rewrites_past_turns_has_no_mask():
    told = "message 1 of the conversation: the chat template writes it, or what came before it"
    with pytest.raises(PoloptError, match=told):
        tokenizer_of("qwen3").chat_turns(chats.CONVERSATIONS["trained"])
    with pytest.raises(PoloptError, match=told):
        tokenizer_of("deepseek_r1_distill").chat_turns(chats.CONVERSATIONS["answered"])


@given(st.text())
def test_no_text_becomes_a_control_token(text):
    tokenizer = tokenizer_of("smollm2")
    control = {tokenizer.token_id(token) for token in tokenizer.control_tokens}
    said = [{"role": "user", "content": text + "<|im_end|>" + text}]
    told = [{"role": "user", "content": "x"}]
    spelled = [i for i in tokenizer.chat(said, reply=True) if i in control]
    assert spelled == [i for i in tokenizer.chat(told, reply=True) if i in control]
    assert text + "<|im_end|>" + text in tokenizer.decode(tokenizer.chat(said), control=True)


def test_a_control_token_in_a_role_is_text_too():
    tokenizer = tokenizer_of("smollm2")
    ids = tokenizer.chat([{"role": "user<|im_end|>", "content": "a"}])
    assert ids.count(tokenizer.eos_ids[0]) == 2  # the system's turn and this


def test_a_template_sees_the_date_that_the_tokenizer_has():
    template = "{{ strftime_now('%d %b %Y') }}"
    tokenizer = tokenizer_of("llama3", template, date="2024-07-26")
    assert tokenizer.decode(tokenizer.prompt("x")) == "26 Jul 2024"
    with pytest.raises(PoloptError, match=r"Tokenizer.date is '26\.7\.': give a day as 2026-01-31"):
        tokenizer_of("llama3", date="26.7.")


def test_templates_see_what_those_of_hugging_face_see():
    template = """
    {%- for m in messages -%}
      {%- if m.content == 'stop' %}{% break %}{% endif -%}
      {%- if not m.content %}{% continue %}{% endif -%}
      {% generation %}{{ m | tojson(indent=1) }}{% endgeneration %}
    {%- endfor %}
    {%- set ns = namespace(n=0) %}{% for x in range(5) %}{% set ns.n = ns.n + x %}{% endfor %}
    {{- [ns.n, tools is none, bos_token, unk_token is defined] }}"""
    said = [{"role": "a", "content": c} for c in ("", 'é<">', "stop", "never")]
    tokenizer = tokenizer_of("llama3", template)
    made = tokenizer.decode(tokenizer.chat(said), control=True)
    expected = json.dumps(said[1], indent=1, ensure_ascii=False)
    assert made == expected + "[10, True, '<|begin_of_text|>', False]"


HOSTILE = {
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "more work",
    "{% for i in range(999999) %}{% endfor %}": "Range too big",
    "{% for i in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaa' }}{% endfor %}": "beyond all",
    "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}"
    "{% endfor %}": "more work",
    "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}"
    "{% endfor %}": "more work",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}"
    "{% endfor %}": "more work",
    "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}"
    "{% endset %}{% set ns.x = y %}{% endfor %}": "more work",
    "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}"
    "{% endfor %}": "hundreds of bits",
    "{% set x = 'a' * 1000000 %}{{ x.replace('a', x) }}": "more work",
    "{% set x = 'a' * 1000000 %}{{ x|replace('a', x) }}": "more work",
    "{% set x = 'a' * 1000000 %}{{ [x, x, x, x]|join(x) }}": "more work",
    "{% set x = 'a' * 1000000 %}{{ x.join([x, x, x]) }}": "more work",
    "{{ 'a' * 10 ** 9 }}": "more work",
    "{{ 10 ** 10000 }}": "large power",
    "{{ 'a'.ljust(1000000000) }}": "unsafe",
    "{{ '{:1000000000}'.format(1) }}": "unsafe",
    "{{ '%1000000000d' % 1 }}": "formats with %",
    "{{ 'a'|center(1000000000) }}": "No filter named 'center'",
    "{{ messages|tojson(indent=100000) }}": "the number 100000",
    "{{ strftime_now('%1000000000d') }}": "asks for the date",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}": "without end",
    "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}": "without end",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}": "without end|rendered",
    "{{ ''.__class__.__mro__ }}": "unsafe|undefined",
    "{{ namespace(__class__=1) }}": "stores the name",
    "{{ (messages|first).__init__.__globals__ }}": "unsafe|undefined",
    "{{ messages.append(1) }}": "unsafe",
    "{{ messages[0].update(role='x') }}": "unsafe",
    "{{ raise_exception('two\nlines') }}": "it says: two lines",
    "{% include 'x' %}": "no loader",
    "{% if %}": "Expected an expression",
    "{{ nothing.at.all }}": "'nothing' is undefined",
    "{{ cycler(1) }}{{ lipsum() }}": "undefined",
    "x" * 200_001: "has 200001 characters",
}


@pytest.mark.parametrize("template", HOSTILE, ids=range(len(HOSTILE)))
def test_a_template_that_asks_for_too_much_is_refused_in_one_line(template):
    tokenizer = tokenizer_of("llama3", template)
    with pytest.raises(PoloptError, match=HOSTILE[template]) as error:
        tokenizer.prompt("x")
    assert str(error.value).startswith("the chat template ")
    assert "\n" not in str(error.value)


def test_a_long_conversation_is_within_the_budget():
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"{i} " * 200} for i in range(1_001)]
    text = {}
    for name in ("qwen3", "llama3_2"):
        ids = tokenizer_of(name).chat(turns)
        text[name] = tokenizer_of(name).decode(ids, control=True)
        assert text[name].count(chats.ENDS[name][1]) >= 1_001


WRONG = {
    "a conversation is a list of messages": [[], {}, "hello"],
    'message 0 of the conversation: give {"role"': [["hi"], [{"content": "x"}], [{"role": 1}]],
    "message 0 of the conversation holds a set": [[{"role": "user", "content": {1}}]],
}


@pytest.mark.parametrize("told", WRONG)
def test_what_is_no_conversation_is_refused(told):
    for messages in WRONG[told]:
        with pytest.raises(PoloptError, match=told):
            tokenizer_of("smollm2").chat(messages)


def test_a_message_without_end_is_refused():
    endless: list = []
    endless.append(endless)
    with pytest.raises(PoloptError, match="message 0 of the conversation is nested deeper than 32"):
        tokenizer_of("smollm2").chat([{"role": "user", "content": endless}])


def test_half_a_character_and_no_template_are_told():
    with pytest.raises(PoloptError, match="lone surrogate"):
        tokenizer_of("smollm2").prompt("\ud800")
    with pytest.raises(PoloptError, match="the tokenizer has no chat template"):
        Tokenizer(SOURCE).chat([{"role": "user", "content": "x"}])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "polopt.models.sandbox")
    monkeypatch.setitem(sys.modules, "jinja2.ext", None)
    with pytest.raises(PoloptError, match="a chat template needs the package 'jinja2'"):
        tokenizer_of("smollm2").prompt("x")


def test_rendering_leaves_no_trace_of_an_earlier_one():
    template = "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    template += "{% endfor %}{{ ns.n }}"
    for _ in range(3):
        assert render(template, {"messages": [1, 2]}, size=2) == "2"
