"""Adapters in the files of PEFT; `tests/public/check_peft.py` asks PEFT itself."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from polopt.errors import PoloptError
from polopt.models.lora import LoraModel, pairs
from polopt.models.peft import CONFIG, WEIGHTS, load_peft, save_peft

from .test_lora import BASE, MODEL, moved, weights


def test_what_is_written_is_read_back_with_their_names_and_shapes(tmp_path):
    params = moved(MODEL, weights())
    save_peft(tmp_path / "made", MODEL, params, "the/base")
    config = json.loads((tmp_path / "made" / CONFIG).read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 6.0)
    assert config["base_model_name_or_path"] == "the/base"
    assert config["target_modules"] == [
        *("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    ]
    tensors = load_file(tmp_path / "made" / WEIGHTS)
    a, b = dict(pairs(params["adapters"]))["layers/1/mlp/down"]
    name = "base_model.model.model.layers.1.mlp.down_proj"
    np.testing.assert_array_equal(tensors[f"{name}.lora_A.weight"], a.T)
    np.testing.assert_array_equal(tensors[f"{name}.lora_B.weight"], b.T)
    model, adapters = load_peft(tmp_path / "made", BASE)
    assert model.adapted() == MODEL.adapted()
    assert (model.rank, model.alpha) == (MODEL.rank, MODEL.alpha)
    jax.tree.map(np.testing.assert_array_equal, adapters, params["adapters"])


def test_some_layers_are_named_in_full(tmp_path):
    model = LoraModel.over(BASE, targets=("layers/1/attention/q",))
    save_peft(tmp_path / "made", model, model.init(jax.random.key(0), weights()), "base")
    config = json.loads((tmp_path / "made" / CONFIG).read_text())
    assert config["target_modules"] == ["model.layers.1.self_attn.q_proj"]


def test_what_is_more_than_plain_adapters_is_refused(tmp_path):
    folder = tmp_path / "made"
    save_peft(folder, MODEL, moved(MODEL, weights()), "base")
    with pytest.raises(PoloptError, match="is there already"):
        save_peft(folder, MODEL, moved(MODEL, weights()), "base")
    plain = json.loads((folder / CONFIG).read_text())

    def asked(**changes):
        (folder / CONFIG).write_text(json.dumps(plain | changes))
        return load_peft(folder, BASE)[0]

    assert asked(use_rslora=True).alpha == pytest.approx(6.0 * 3**0.5)
    for changes, message in (
        ({"use_dora": True}, "use_dora is True, which is not supported"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern is"),
        ({"r": 0}, "r is 0, lora_alpha 6.0"),
        ({"r": 2}, r"lora_A of layers/0/attention/k is \[3, 16\]: the model wants \[2, 16\]"),
    ):
        with pytest.raises(PoloptError, match=message):
            asked(**changes)
