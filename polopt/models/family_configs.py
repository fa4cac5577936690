"""The `config.json` of every model family, read as fields of a `DecoderConfig` and written back.

Defaults are those of transformers where published configurations leave a key out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polopt.models.config import DecoderConfig
from polopt.models.options import ABSENT, MOST, Options
from polopt.models.rope_options import (
    GLOBAL,
    LOCAL,
    read_rope,
    read_rope_per_kind,
    write_rope,
)

Fields = dict[str, Any]

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu"}
_WRITTEN = {"silu": "silu", "gelu": "gelu_pytorch_tanh"}
_PARTS = 10_000  # layers, heads or experts of any model
_QWEN2 = {"num_key_value_heads": 32}
_QWEN3 = {"num_key_value_heads": 32, "head_dim": 128}
_QWEN3_MOE = {"num_key_value_heads": 4}
_GEMMA2 = {"head_dim": 256, "num_key_value_heads": 4}
_GEMMA3 = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
}


def read_llama(options: Options) -> Fields:
    """Llama 2 and 3, SmolLM2."""
    mlp_bias = options.flag("mlp_bias", False)
    return _llama_like(options, {}) | _biases(options) | {"mlp_bias": mlp_bias}


def write_llama(config: DecoderConfig) -> Fields:
    """The inverse of `read_llama`."""
    return _write_llama_like(config) | _write_biases(config) | {"mlp_bias": config.mlp_bias}


def read_qwen2(options: Options) -> Fields:
    """Qwen 2 and 2.5."""
    options.get("attention_bias", None)  # Qwen 2 has biases of its own, whatever stands there
    return _llama_like(options, _QWEN2) | _tail_window(options) | {"qkv_bias": True}


def write_qwen2(config: DecoderConfig) -> Fields:
    """The inverse of `read_qwen2`."""
    return _write_llama_like(config) | _write_tail_window(config)


def read_qwen3(options: Options) -> Fields:
    """Qwen 3, dense."""
    fields = _llama_like(options, _QWEN3) | _tail_window(options)
    return fields | _biases(options) | {"qk_norm": True}


def write_qwen3(config: DecoderConfig) -> Fields:
    """The inverse of `read_qwen3`."""
    return _write_llama_like(config) | _write_tail_window(config) | _write_biases(config)


def read_qwen3_moe(options: Options) -> Fields:
    """Qwen 3 with experts. Its window, where it is switched on, is every layer's."""
    fields = _llama_like(options, _QWEN3_MOE) | _biases(options) | {"qk_norm": True}
    layers, window = fields["num_layers"], _switched_window(options)
    step = options.size("decoder_sparse_step", 1)
    dense = set(options.list_of("mlp_only_layers", range(layers)) or [])
    older = options.size("num_experts", None, _PARTS)
    count = options.size("num_local_experts", ABSENT if older is None else older, _PARTS)
    if older not in (None, count):
        raise options.error(f"num_experts is {older}, but num_local_experts {count}")
    return fields | {
        "window": window,
        "local_layers": tuple(range(layers)) if window else (),
        "experts": {
            "count": count,
            "chosen": options.size("num_experts_per_tok", most=_PARTS),
            "size": options.size("moe_intermediate_size"),
            "normalise": options.flag("norm_topk_prob", False),
            "dense_layers": tuple(i for i in range(layers) if i in dense or (i + 1) % step),
        },
    }


def write_qwen3_moe(config: DecoderConfig) -> Fields:
    """The inverse of `read_qwen3_moe`."""
    experts, local = config.experts, bool(config.local_layers)
    values = _write_llama_like(config) | _write_biases(config)
    values |= {"use_sliding_window": local, "sliding_window": config.window if local else None}
    if experts is None:
        return values | {"num_experts": 0}
    return values | {
        "num_experts": experts.count,
        "num_experts_per_tok": experts.chosen,
        "moe_intermediate_size": experts.size,
        "norm_topk_prob": experts.normalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(experts.dense_layers),
    }


def read_gemma2(options: Options) -> Fields:
    """Gemma 2: every other layer is local, the first one too."""
    fields = _gemma(options, _GEMMA2, period=2)
    theta, scaling = read_rope(options, fields["max_length"])
    return fields | {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "attention_softcap": _cap(options, "attn_logit_softcapping", 50.0),
        "logit_softcap": _cap(options, "final_logit_softcapping", 30.0),
    }


def write_gemma2(config: DecoderConfig) -> Fields:
    """The inverse of `read_gemma2`."""
    return _write_gemma(config)


def read_gemma3_text(options: Options) -> Fields:
    """Gemma 3 without its eyes."""
    cap = _cap(options, "final_logit_softcapping", None)
    return _gemma3(options) | {"logit_softcap": cap}


def write_gemma3_text(config: DecoderConfig) -> Fields:
    """The inverse of `read_gemma3_text`."""
    values = _write_gemma(config) | {"rope_local_base_freq": config.local_rope_theta}
    # Before release 4.53 transformers knew no list of layers, only a period.
    seeing_all = [i for i in range(config.num_layers) if i not in config.local_layers]
    period = min(seeing_all, default=config.num_layers) + 1
    if seeing_all == list(range(period - 1, config.num_layers, period)):
        values["sliding_window_pattern"] = period
    return values


def read_gemma3(options: Options) -> Fields:
    """The text part of Gemma 3 with its eyes."""
    text = options.inner("text_config", ABSENT)
    kind = text.get("model_type", "gemma3_text")
    if kind != "gemma3_text":
        raise text.wrong("model_type", kind, "gemma3_text")
    fields = _gemma3(text)
    text.check_unread()
    tied = options.flag("tie_word_embeddings", fields["tie_embeddings"])
    return fields | {"tie_embeddings": tied}


def _sizes(options: Options, defaults: Mapping[str, int]) -> Fields:
    """What all families have; `defaults` for sizes that a family's config.json may leave out."""

    def size(key: str, default: Any = ABSENT, most: int = MOST) -> int:
        return options.size(key, defaults.get(key, default), most)

    heads, hidden = size("num_attention_heads", most=_PARTS), size("hidden_size")
    shared = "num_key_value_heads"  # null is all of them, and silence the family's default
    kv_heads = heads if options.has(shared) else defaults.get(shared, heads)
    return {
        "vocab_size": size("vocab_size"),
        "hidden_size": hidden,
        "num_layers": size("num_hidden_layers", most=_PARTS),
        "num_heads": heads,
        "num_kv_heads": options.size(shared, kv_heads),
        "head_dim": size("head_dim", max(hidden // heads, 1)),
        "mlp_size": size("intermediate_size"),
        "max_length": size("max_position_embeddings"),
        "norm_eps": options.number("rms_norm_eps", 1e-6),
    }


def _write_sizes(config: DecoderConfig) -> Fields:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_size,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": write_rope(config.rope_scaling),
        "tie_word_embeddings": config.tie_embeddings,
    }


def _llama_like(options: Options, defaults: Mapping[str, int]) -> Fields:
    """What Llama and the Qwens have in common."""
    fields = _sizes(options, defaults)
    theta, scaling = read_rope(options, fields["max_length"])
    return fields | {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "activation": options.choice("hidden_act", _ACTIVATIONS, "silu"),
        "tie_embeddings": options.flag("tie_word_embeddings", False),
    }


def _write_llama_like(config: DecoderConfig) -> Fields:
    return _write_sizes(config) | {"hidden_act": _WRITTEN[config.activation]}


def _biases(options: Options) -> Fields:
    bias = options.flag("attention_bias", False)
    return {"qkv_bias": bias, "out_bias": bias}


def _write_biases(config: DecoderConfig) -> Fields:
    return {"attention_bias": config.qkv_bias}


def _switched_window(options: Options) -> int | None:
    """Qwen's window, where it is switched on."""
    switched = options.flag("use_sliding_window", False)
    if switched:
        return options.size("sliding_window")
    options.get("sliding_window", None)  # without effect, whatever it is
    return None


def _tail_window(options: Options) -> Fields:
    """Qwen's dense models: layers from `max_window_layers` on are local, or those listed."""
    layers, window = options.size("num_hidden_layers", most=_PARTS), _switched_window(options)
    first = options.size("max_window_layers", 28, least=0)
    local = _listed_layers(options, layers)
    if local is None:
        local = tuple(range(first, layers)) if window else ()
    if local and not window:
        raise options.error(f"layer_types has {LOCAL}, but use_sliding_window is not true")
    return {"window": window, "local_layers": local}


def _write_tail_window(config: DecoderConfig) -> Fields:
    local = config.local_layers
    return {
        "use_sliding_window": bool(local),
        "sliding_window": config.window if local else None,
        "max_window_layers": min(local, default=config.num_layers),
        "layer_types": _write_layers(config),
    }


def _listed_layers(options: Options, layers: int) -> tuple[int, ...] | None:
    """The local layers that `layer_types` lists, or None without such a list."""
    types = options.list_of("layer_types", (LOCAL, GLOBAL))
    if types is None:
        return None
    if len(types) != layers:
        raise options.error(f"layer_types has {len(types)} entries for {layers} layers")
    return tuple(i for i, kind in enumerate(types) if kind == LOCAL)


def _write_layers(config: DecoderConfig) -> list[str]:
    local = set(config.local_layers)
    return [LOCAL if layer in local else GLOBAL for layer in range(config.num_layers)]


def _gemma(options: Options, defaults: Mapping[str, int], *, period: int) -> Fields:
    """What Gemma 2 and 3 have in common; without a list every `period`-th layer is not local."""
    fields = _sizes(options, defaults)
    layers = fields["num_layers"]
    local = _listed_layers(options, layers)
    if local is None:
        local = tuple(i for i in range(layers) if (i + 1) % period)
    return fields | {
        **_biases(options),
        "activation": options.choice("hidden_activation", _ACTIVATIONS, "gelu_pytorch_tanh"),
        "tie_embeddings": options.flag("tie_word_embeddings", True),
        "norm_offset": 1.0,
        "post_norms": True,
        "embed_scale": fields["hidden_size"] ** 0.5,
        "attention_scale": options.number("query_pre_attn_scalar", 256.0) ** -0.5,
        "window": options.size("sliding_window", 4096),
        "local_layers": local,
    }


def _gemma3(options: Options) -> Fields:
    """Gemma 3 with or without eyes. Scores have no cap: transformers reads one and forgets it."""
    period = options.size("sliding_window_pattern", options.size("_sliding_window_pattern", 6))
    fields = _gemma(options, _GEMMA3, period=period)
    theta, scaling, local_theta = read_rope_per_kind(options, fields["max_length"])
    rope = {"rope_theta": theta, "rope_scaling": scaling, "local_rope_theta": local_theta}
    return fields | rope | {"qk_norm": True}


def _cap(options: Options, key: str, default: float | None) -> float | None:
    """A soft cap, where null is none and silence the default."""
    return options.number(key, None if options.has(key) else default)


def _write_gemma(config: DecoderConfig) -> Fields:
    scalar = config.score_scale**-2
    whole = round(scalar)
    activation = _WRITTEN[config.activation]
    return _write_sizes(config) | {
        **_write_biases(config),
        "hidden_activation": activation,
        "hidden_act": activation,  # read by some other programs
        "query_pre_attn_scalar": whole if abs(scalar - whole) < 1e-6 * scalar else scalar,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "sliding_window": config.window,
        "layer_types": _write_layers(config),
    }
