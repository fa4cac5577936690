"""Shapes of models by name are those of the published models."""

import json

import jax
import pytest

from plan import count
from polopt.errors import PoloptError
from polopt.models import LanguageModel, base
from polopt.plan.memory import numbers_of
from polopt.plan.shapes import read_shape

# Numbers of weights as the safetensors files on huggingface.co have them.
PUBLISHED = {
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "qwen2.5-0.5b": 494_032_768,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_named_shape_has_as_many_weights_as_the_published_model(name):
    assert count.parameters(read_shape(name)) == PUBLISHED[name]


def test_the_decoder_of_a_shape_has_them_too():
    model = LanguageModel(read_shape("qwen2.5-0.5b"))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert numbers_of(shapes) == PUBLISHED["qwen2.5-0.5b"]


def test_a_folder_is_read_as_hugging_face_or_as_we_write_it(tmp_path):
    ours = base.load()[0].config
    assert read_shape("base") == ours
    (tmp_path / "config.json").write_text(json.dumps(ours.to_dict()))
    assert read_shape(str(tmp_path)) == ours
    theirs = {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    assert read_shape(str(tmp_path)).mlp_size == 32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no model shape '.*': accepted are llama3-8b, .*, base, and a folder"),
        ("[1]", "must hold one JSON object"),
        ('{"model_type": "gpt9"}', "no model family 'gpt9'"),
        ('{"algorithm": "grpo"}', "describes no model: .*unknown 'algorithm'"),
    ],
)
def test_what_describes_no_model_is_refused_in_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(PoloptError, match=message) as error:
        read_shape(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_name_that_is_nearly_one_is_hinted_at():
    with pytest.raises(PoloptError, match="did you mean 'llama3-8b'"):
        read_shape("llama-3-8b")
