"""What configurations of Hugging Face mean, in every spelling, and what is refused."""

import copy
import dataclasses

import pytest
from public import checkpoints

from models import folders
from polopt.errors import PoloptError
from polopt.models.config import DecoderConfig, Experts, RopeScaling
from polopt.models.families import FAMILIES, read_config, source_of, write_config

SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
OURS = {
    "vocab_size": 48,
    "hidden_size": 32,
    "mlp_size": 40,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "max_length": 64,
    "norm_eps": 1e-6,
}
LLAMA = {"model_type": "llama", **SIZES}
QWEN2 = {"model_type": "qwen2", **SIZES}
GEMMA2 = {"model_type": "gemma2", **SIZES}
GEMMA3 = {"model_type": "gemma3_text", **SIZES}
MOE = {
    "model_type": "qwen3_moe",
    **SIZES,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}

SILENT = {"llama": LLAMA, "qwen2": QWEN2, "moe": MOE, "gemma2": GEMMA2, "gemma3": GEMMA3}
SILENT = {name: {**values, "head_dim": 8} for name, values in SILENT.items()}


def read(values):
    return read_config(values)[1]


@pytest.mark.parametrize("case", folders.CASES)
def test_both_spellings_are_one_decoder_and_it_is_written_back(case):
    meta, _ = checkpoints.frozen(case)
    family, config = read_config(meta["config"])
    assert family == meta["config"]["model_type"]
    # That transformers agrees is asserted where the case is frozen.
    assert read_config(meta["older"]) == (family, config)
    written, values = write_config(config)
    assert written == {"gemma3": "gemma3_text"}.get(family, family)
    assert read(values) == config


def test_what_is_absent_has_the_value_that_transformers_gives_it():
    plain = DecoderConfig(**OURS, tie_embeddings=False)
    assert read(LLAMA) == plain
    assert read(QWEN2) == dataclasses.replace(plain, qkv_bias=True)
    qwen3 = dataclasses.replace(plain, head_dim=128, qk_norm=True)
    assert read({**QWEN2, "model_type": "qwen3"}) == qwen3
    experts = Experts(count=8, chosen=2, size=24, normalise=False)
    assert read(MOE) == dataclasses.replace(plain, qk_norm=True, experts=experts)
    gemma2 = DecoderConfig(
        **{**OURS, "head_dim": 256},
        activation="gelu",
        norm_offset=1.0,
        post_norms=True,
        embed_scale=32**0.5,
        attention_scale=1 / 16,
        attention_softcap=50.0,
        logit_softcap=30.0,
        window=4096,
        local_layers=(0, 2),
    )
    assert read(GEMMA2) == gemma2
    gemma3 = dataclasses.replace(
        gemma2,
        attention_softcap=None,
        logit_softcap=None,
        local_layers=(0, 1, 2, 3),
        rope_theta=1e6,
        local_rope_theta=1e4,
        qk_norm=True,
    )
    assert read(GEMMA3) == gemma3


def test_key_heads_that_are_null_or_absent():
    heads = {"num_key_value_heads": None, "num_attention_heads": 32}
    shared = {name: read({**values, **heads}).num_kv_heads for name, values in SILENT.items()}
    assert set(shared.values()) == {32}
    del heads["num_key_value_heads"]
    for name, expected in {"llama": 32, "qwen2": 32, "moe": 4, "gemma2": 4, "gemma3": 4}.items():
        values = {k: v for k, v in SILENT[name].items() if k != "num_key_value_heads"}
        assert read({**values, **heads}).num_kv_heads == expected, name


def test_llama_3_2_1b():
    """As published, shortened to what matters."""
    config = read(
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "eos_token_id": 128001,
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": 128256,
        }
    )
    assert config == DecoderConfig(
        vocab_size=128256,
        hidden_size=2048,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        mlp_size=8192,
        max_length=131072,
        rope_theta=5e5,
        rope_scaling=RopeScaling(kind="llama3", factor=32.0, original_length=8192),
    )


def test_gemma_3_4b():
    """Its text_config as published: most sizes are not told."""
    config = read(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "eos_token_id": [1, 106],
            "model_type": "gemma3",
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "model_type": "gemma3_text",
                "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
            "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
        }
    )
    assert (config.vocab_size, config.num_heads, config.num_kv_heads) == (262_208, 8, 4)
    assert (config.head_dim, config.max_length, config.window) == (256, 131_072, 1024)
    assert set(range(34)) - set(config.local_layers) == {5, 11, 17, 23, 29}
    assert config.rotation_of(5) == (1e6, RopeScaling(kind="linear", factor=8.0))
    assert config.rotation_of(4) == (1e4, None)
    assert config.tie_embeddings


def test_windows_of_qwen():
    off = {**QWEN2, "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 2}
    assert read(off).local_layers == ()
    on = {**off, "use_sliding_window": True}
    assert (read(on).window, read(on).local_layers) == (32768, (2, 3))
    listed = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    assert read({**on, "layer_types": listed}).local_layers == (0, 3)
    assert read({**MOE, "use_sliding_window": True, "sliding_window": 9}).local_layers == (
        0,
        1,
        2,
        3,
    )


def test_dense_layers_of_a_mixture():
    config = read({**MOE, "decoder_sparse_step": 2, "mlp_only_layers": [3]})
    assert [config.routed(layer) for layer in range(4)] == [False, True, False, False]


def test_yarn():
    rope = {"type": "yarn", "factor": 4.0}
    scaling = read({**LLAMA, "rope_scaling": rope}).rope_scaling
    assert scaling == RopeScaling(kind="yarn", factor=4.0, original_length=64)
    outside = {**LLAMA, "rope_scaling": rope, "original_max_position_embeddings": 16}
    assert read(outside).rope_scaling.original_length == 16
    # 0.1 ln(4) + 1 = 1.13863 over 0.2 ln(4) + 1 = 1.27726
    deepseek = {**rope, "mscale": 1.0, "mscale_all_dim": 2.0}
    scaling = read({**LLAMA, "rope_scaling": deepseek}).rope_scaling
    assert scaling.attention_factor == pytest.approx(0.891463, abs=1e-6)


REFUSED = {
    "no family": ({"model_type": "mamba"}, "no model family 'mamba': accepted are llama, qwen2,"),
    "near family": ({**LLAMA, "model_type": "qwen_2"}, "did you mean 'qwen2'"),
    "no type": (SIZES, "has no 'model_type'"),
    "a list": ({**LLAMA, "model_type": ["llama"]}, r"no model family \['llama'\]"),
    "activation": ({**LLAMA, "hidden_act": "gelu"}, "hidden_act is 'gelu': accepted are silu"),
    "missing": ({"model_type": "llama", "hidden_size": 8}, "has no 'num_attention_heads'"),
    "text": ({**LLAMA, "hidden_size": "32"}, "hidden_size is '32': accepted are integers from 1"),
    "bool": ({**LLAMA, "hidden_size": True}, "hidden_size is True: accepted are integers from 1"),
    "negative": ({**LLAMA, "vocab_size": -1}, "vocab_size is -1: accepted"),
    "huge": ({**LLAMA, "num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000: acc"),
    "endless": ({**LLAMA, "vocab_size": 10**4000}, r"vocab_size is 1000+\.\.\.: accepted"),
    "infinite": ({**LLAMA, "rms_norm_eps": float("inf")}, "rms_norm_eps is inf: accepted are num"),
    "nan": ({**LLAMA, "rope_theta": float("nan")}, "rope_theta is nan: accepted are numbers above"),
    "flag": ({**LLAMA, "attention_bias": 1}, "attention_bias is 1: accepted are true and false"),
    "odd": ({**LLAMA, "head_dim": 7}, "config.json: DecoderConfig.head_dim is 7: give an even"),
    "groups": ({**LLAMA, "num_key_value_heads": 3}, "num_heads is 4: give a multiple"),
    "partial": ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5: accepted"),
    "partial inside": (
        {**LLAMA, "rope_parameters": {"partial_rotary_factor": 0.5}},
        "rope_parameters: partial_rotary_factor is 0.5: accepted are 1",
    ),
    "dynamic": (
        {**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "rope_scaling: rope_type is 'dynamic': accepted are default, linear, llama3, yarn",
    ),
    "no factor": ({**LLAMA, "rope_scaling": {"type": "linear"}}, "rope_scaling has no 'factor'"),
    "shrunk": (
        {**LLAMA, "rope_scaling": {"type": "linear", "factor": 0.5}},
        "config.json: RopeScaling.factor is 0.5",
    ),
    "other option": (
        {**LLAMA, "rope_scaling": {"type": "yarn", "factor": 2.0, "long_factor": [1]}},
        "rope_scaling: 'long_factor' is not supported: accepted are attention_factor, beta_fast",
    ),
    "both": (
        {**LLAMA, "rope_scaling": {}, "rope_parameters": {}},
        "both rope_scaling and rope_parameters: accepted is one of them",
    ),
    "no object": ({**LLAMA, "rope_scaling": 3}, "rope_scaling is 3: accepted are objects"),
    "quantised": (
        {**LLAMA, "quantization_config": {"bits": 4}},
        r"quantization_config is \{'bits': 4\}: accepted are here None",
    ),
    "window": ({**LLAMA, "sliding_window": 9}, "sliding_window is 9: accepted are here None"),
    "experts": ({**LLAMA, "num_local_experts": 8}, "num_local_experts is 8: accepted are here"),
    "two counts": ({**MOE, "num_local_experts": 4}, "num_experts is 8, but num_local_experts 4"),
    "too many": ({**MOE, "num_experts_per_tok": 9}, "9 of 8 experts"),
    "dense layer": ({**MOE, "mlp_only_layers": [4]}, r"mlp_only_layers is \[4\]: accepted are li"),
    "no window": ({**QWEN2, "use_sliding_window": True}, "has no 'sliding_window'"),
    "window off": (
        {**QWEN2, "layer_types": ["sliding_attention"] * 4},
        "layer_types has sliding_attention, but use_sliding_window is not true",
    ),
    "layers": (
        {**GEMMA2, "layer_types": ["full_attention"]},
        "layer_types has 1 entries for 4 layers",
    ),
    "kind of layer": (
        {**GEMMA2, "layer_types": ["linear_attention"] * 4},
        r"accepted are lists of \('sliding_attention', 'full_attention'\)",
    ),
    "both ways": ({**GEMMA3, "use_bidirectional_attention": True}, "use_bidirectional_attention"),
    "forgotten cap": ({**GEMMA3, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    "local rope": (
        {**GEMMA3, "rope_parameters": {"sliding_attention": {"type": "linear"}}},
        "sliding_attention has no 'factor'",
    ),
    "local scaling": (
        {
            **GEMMA3,
            "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}},
        },
        "rope_type is linear: local layers accept default only",
    ),
    "flat rope": (
        {**GEMMA3, "rope_parameters": {"rope_theta": 9.0}},
        "'rope_theta' is not supported",
    ),
    "no text": ({"model_type": "gemma3"}, "has no 'text_config'"),
    "inside": (
        {"model_type": "gemma3", "text_config": {**GEMMA3, "quantization_config": {}}},
        "config.json: text_config: quantization_config",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    values, message = REFUSED[name]
    given = copy.deepcopy(values)
    with pytest.raises(PoloptError, match=message) as caught:
        read_config(values)
    assert "\n" not in str(caught.value)
    assert values == given or name == "nan"


def test_what_changes_nothing_is_accepted():
    noise = {
        "use_cache": True,
        "attention_dropout": 0.0,
        "partial_rotary_factor": 1.0,
        "quantization_config": None,
        "rope_interleaved": False,
        "transformers.js_config": {"dtype": "q4"},
        "rope_scaling": None,
        "sliding_window": None,
    }
    assert read({**LLAMA, **noise}) == read(LLAMA)
    assert read({**LLAMA, "rope_parameters": {"rope_type": "default"}}) == read(LLAMA)


def test_a_decoder_that_no_family_has_names_what_each_would_lose():
    config = dataclasses.replace(read(LLAMA), post_norms=True, mlp_bias=True)
    with pytest.raises(PoloptError, match=r"llama \(other post_norms\); qwen2 \(other ") as caught:
        write_config(config)
    assert all(name in str(caught.value) for name in FAMILIES if name != "gemma3")


def test_a_decoder_of_ones_own_is_llamas():
    config = DecoderConfig(**OURS, activation="gelu", rope_theta=123.0)
    name, values = write_config(config)
    assert name == "llama"
    assert values["hidden_act"] == "gelu_pytorch_tanh"
    assert read(values) == config


def test_equal_decoders_are_written_alike():
    config = read({**GEMMA2, "query_pre_attn_scalar": 224, "head_dim": 8})
    assert write_config(config)[1]["query_pre_attn_scalar"] == 224
    plain = dataclasses.replace(read(LLAMA), attention_scale=8**-0.5, window=7)
    assert write_config(plain)[0] == "llama"


@pytest.mark.parametrize(
    ("local", "period"), [((0, 1, 3), 3), ((0, 1, 2, 3), 5), ((), 1), ((0, 3), None)]
)
def test_a_period_is_told_where_there_is_one(local, period):
    config = dataclasses.replace(read(GEMMA3), local_layers=local)
    assert write_config(config)[1].get("sliding_window_pattern") == period


def test_names_of_tensors():
    gemma, moe = FAMILIES["gemma3"], FAMILIES["qwen3_moe"]
    path = ("layers", "12", "mlp_norm", "scale")
    source = source_of(gemma, gemma.roots[0], path, 0)
    assert source.names == ("language_model.model.layers.12.pre_feedforward_layernorm.weight",)
    assert not source.transposed
    source = source_of(moe, "model.", ("layers", "0", "experts", "up"), 2)
    assert source.names == (
        "model.layers.0.mlp.experts.0.up_proj.weight",
        "model.layers.0.mlp.experts.1.up_proj.weight",
    )
    assert source.transposed
    assert source_of(gemma, "x.", ("unembed", "embedding"), 0).names == ("lm_head.weight",)
