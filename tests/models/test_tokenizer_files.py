"""Hugging Face folders as tokenizers: every place where they say what they say."""

import json

import pytest
import tokenizers

from models import chats
from polopt.errors import PoloptError
from polopt.models.tokenizer_files import tokenizer_of_folder

BASE = {"bos_token": "<bos>", "eos_token": "<eos>"}
TEMPLATE = "{{ bos_token }}{{ messages[0].content }}<|im_end|>"


def folder_of(tmp_path, *, source=None, template=None, **files):
    (tmp_path / "tokenizer.json").write_text(source or chats.source(), encoding="utf-8")
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    return tmp_path


def read(tmp_path, **files):
    return tokenizer_of_folder(folder_of(tmp_path, **files))


def test_a_folder_is_read_with_its_template(tmp_path):
    config = BASE | {"chat_template": TEMPLATE, "pad_token": {"content": "<pad>", "special": True}}
    tokenizer = read(tmp_path, tokenizer_config=config)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == ("<bos>", ("<eos>",), "<pad>")
    end = tokenizer.token_id("<|im_end|>")
    assert tokenizer.prompt("12") == [1, *tokenizer.encode("12"), end]


def test_the_file_of_a_template_comes_before_the_configuration(tmp_path):
    config = BASE | {"chat_template": "older"}
    assert read(tmp_path, template=TEMPLATE, tokenizer_config=config).chat_template == TEMPLATE


def test_of_several_templates_the_default_is_taken(tmp_path):
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
    config = BASE | {"chat_template": several}
    assert read(tmp_path, tokenizer_config=config).chat_template == TEMPLATE
    config["chat_template"] = several[:1]
    with pytest.raises(PoloptError, match="no entry named 'default', but 'tool_use'"):
        read(tmp_path, tokenizer_config=config)


def test_all_ends_count_and_the_tokenizers_own_comes_first(tmp_path):
    ends = [513, 2, 512 + chats.CONTROL.index("<|eot_id|>")]
    generation, config = {"eos_token_id": ends}, {"eos_token_id": 0}
    made = read(tmp_path, tokenizer_config=BASE, generation_config=generation, config=config)
    assert made.eos == ("<eos>", "<|im_end|>", "<|eot_id|>")
    (tmp_path / "generation_config.json").unlink()
    assert tokenizer_of_folder(tmp_path).eos == ("<eos>", "<pad>")  # of config.json
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert tokenizer_of_folder(tmp_path).eos == ("<pad>",)
    assert tokenizer_of_folder(tmp_path).pad == "<pad>"


def test_the_map_of_special_tokens_comes_before_the_configuration(tmp_path):
    special = {"eos_token": {"content": "<|im_end|>"}, "bos_token": None}
    made = read(tmp_path, tokenizer_config=BASE, special_tokens_map=special)
    assert made.eos == ("<|im_end|>",)


def test_without_a_template_bos_stands_where_the_tokenizer_puts_it(tmp_path):
    assert read(tmp_path, tokenizer_config=BASE).bos is None
    assert read(tmp_path, tokenizer_config=BASE | {"add_bos_token": True}).bos == "<bos>"
    backend = tokenizers.Tokenizer.from_str(chats.source())
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    source = backend.to_str()
    made = read(tmp_path, source=source, tokenizer_config=BASE)
    assert made.bos == "<bos>"
    assert made.prompt("12") == [1, *made.encode("12\n")]
    assert (
        read(tmp_path, source=source, tokenizer_config=BASE | {"add_bos_token": False}).bos is None
    )


def test_ids_beyond_a_gap_are_within_the_vocabulary(tmp_path):
    made = json.loads(chats.source())
    vocab = made["model"]["vocab"]
    last = max(vocab, key=lambda token: vocab[token])
    made["model"]["vocab"] = {token: i + 5 * (token == last) for token, i in vocab.items()}
    made["added_tokens"] = made["added_tokens"][: -len(chats.CONTROL)]
    tokenizer = read(tmp_path, source=json.dumps(made), tokenizer_config=BASE)
    assert tokenizer.vocab_size == len(vocab) + 5


WRONG = {
    "no token ends a text": {"tokenizer_config": {"bos_token": "<bos>"}},
    "the tokenizer has no token '<end>'": {"tokenizer_config": BASE | {"eos_token": "<end>"}},
    "generation_config.json: the tokenizer has no id 9999": {
        "generation_config": {"eos_token_id": [2, 9999]}
    },
    "eos_token_id holds 'x': give ids": {"generation_config": {"eos_token_id": "x"}},
    "tokenizer_config.json: 3 is no token": {"tokenizer_config": {"eos_token": 3}},
    "chat_template is neither a text nor": {"tokenizer_config": BASE | {"chat_template": {}}},
    "a JSON object is expected": {"tokenizer_config": []},
}


@pytest.mark.parametrize("told", WRONG)
def test_what_makes_no_tokenizer_is_refused_in_one_line(tmp_path, told):
    with pytest.raises(PoloptError, match=told) as error:
        read(tmp_path, **WRONG[told])
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(PoloptError, match=r"tokenizer.json: cannot read the tokenizer"):
        tokenizer_of_folder(tmp_path)
    folder_of(tmp_path, tokenizer_config=BASE)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(PoloptError, match="cannot read the chat template"):
        tokenizer_of_folder(tmp_path)
