"""A conversation with a model: what is put to it, and when its context is full."""

import jax
import numpy as np
import pytest
from models.test_chat import tokenizer_of

from polopt.errors import PoloptError, UsageError
from polopt.models import DecoderConfig, LanguageModel, base
from polopt.rollout.draw import Decoding
from polopt.train import talk as module
from polopt.train.policy import Policy, instructed
from polopt.train.talk import NARROWEST, Talk, open_talk
from polopt.types import Stop

MODEL = LanguageModel(
    DecoderConfig(
        vocab_size=544,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        mlp_size=16,
        max_length=256,
    )
)
CHATTING = tokenizer_of("smollm2")


def talk_with(tokenizer, monkeypatch, replies, **changes):
    """A talk whose model says `replies` one after another, and the prompts that it was given."""
    asked, texts = [], iter(replies)

    def draw(self, prompt):
        asked.append(tokenizer.decode(prompt, control=True))
        ids = tokenizer.encode(next(texts))
        return [*ids, tokenizer.eos_ids[0]], Stop.EOS

    monkeypatch.setattr(Talk, "_draw", draw)
    policy = Policy(model=MODEL, params=None, tokenizer=tokenizer)
    policy = instructed(policy, changes.pop("system", None), form="")
    return Talk(policy, Decoding(), max_new_tokens=8), asked


def test_a_turn_is_told_of_those_before_it(monkeypatch):
    talk, asked = talk_with(CHATTING, monkeypatch, ["4.", "5.", "6."], system="Count.")
    assert talk.reply("2+2?").text == "4."
    assert talk.reply("And one more?").text == "5."
    opening = "<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
    assert asked[0] == f"{opening}<|im_start|>assistant\n"
    assert asked[1] == (
        f"{asked[0]}4.<|im_end|>\n<|im_start|>user\nAnd one more?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    talk.forget()
    talk.reply("2+2?")
    assert asked[2] == asked[0]


def test_without_a_template_each_text_is_continued_on_its_own(monkeypatch):
    talk, asked = talk_with(base.load()[2], monkeypatch, ["3", "9"])
    assert not talk.remembers
    assert [talk.reply("1 + 2 =").text, talk.reply("4 + 5 =").text] == ["3", "9"]
    assert asked == ["<bos>1 + 2 =\n", "<bos>4 + 5 =\n"]


@pytest.fixture(scope="module")
def policy():
    return Policy(model=MODEL, params=MODEL.init(jax.random.key(0)), tokenizer=CHATTING)


@pytest.mark.slow
def test_a_reply_is_the_likeliest_continuation_and_few_widths_are_compiled(policy, monkeypatch):
    widths = []

    def spy(model, params, prompts, *args, **options):
        widths.append(prompts.shape[1])
        return generate(model, params, prompts, *args, **options)

    generate = module.generate
    monkeypatch.setattr(module, "generate", spy)
    talk = Talk(policy, Decoding(greedy=True), max_new_tokens=5)
    said = talk.reply("hi")
    prompt = CHATTING.prompt("hi")
    row = np.zeros((1, len(prompt) + 5), np.int32)
    row[0, : len(prompt)] = prompt
    for place in range(len(prompt), len(prompt) + 5):
        logits = MODEL.logits(policy.params, MODEL.hidden(policy.params, row)[0, place - 1])
        row[0, place] = int(np.argmax(logits[: CHATTING.vocab_size]))
        if row[0, place] in CHATTING.eos_ids:
            break
    assert said.text == CHATTING.decode(row[0, len(prompt) : place + 1]).strip()
    assert said.cut == (row[0, place] not in CHATTING.eos_ids)
    talk.forget()
    talk.reply("hi there")
    assert widths == [2 * NARROWEST, 2 * NARROWEST]


def test_a_full_context_is_one_line_and_changes_nothing(policy, monkeypatch):
    talk = Talk(policy, Decoding(), max_new_tokens=200)
    with pytest.raises(PoloptError, match=r"context is full: \d+ tokens and 200 for .*256"):
        talk.reply("x" * 100)
    assert not talk._history


def test_what_cannot_be_opened_is_refused():
    options = {"system": None, "max_new_tokens": 4, "seed": 0}
    with pytest.raises(UsageError, match="system: the model has no chat template"):
        open_talk("base", Decoding(), **{**options, "system": "Be brief."})
    with pytest.raises(UsageError, match="max_new_tokens=999, but the model holds 160"):
        open_talk("base", Decoding(), **{**options, "max_new_tokens": 999})
