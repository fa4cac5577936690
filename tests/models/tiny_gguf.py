"""Tiny GGUF files, written by the `gguf` package as llama.cpp's converter writes large ones."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np

VOCAB, D, F, H, K, LAYERS, LENGTH = 48, 32, 64, 4, 2, 3, 64
EXPERTS, CHOSEN, EXPERT_F = 4, 2, 32
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
BASE = pathlib.Path(__file__).parents[2] / "polopt" / "models" / "base" / "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What a file says of its tokenizer."""

    tokens: list[str]
    kinds: list[int]
    model: str = "gpt2"
    pre: str = "gpt-2"
    merges: list[str] | None = None
    scores: list[float] | None = None
    eos: int = 1
    bos: int | None = 0
    template: str | None = None
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


LETTERS = Vocabulary(
    ["<s>", "</s>", *map(chr, range(ord("a"), ord("a") + 26)), *"ABCDEFGHIJKLMNOPQRS", "ab"],
    [CONTROL, CONTROL] + [NORMAL] * 46,
    merges=["a b"],
)


def byte_level(pre: str, **options: Any) -> Vocabulary:
    """The vocabulary of the embedded model, in a file of any pre-tokenizer."""
    made = json.loads(BASE.read_text(encoding="utf-8"))
    ids = made["model"]["vocab"]
    tokens = sorted(ids, key=lambda token: ids[token])
    control = {token["content"]: token["special"] for token in made["added_tokens"]}
    kinds = [{True: CONTROL, False: USER}.get(control.get(token), NORMAL) for token in tokens]
    merges = [" ".join(pair) for pair in made["model"]["merges"]]
    return Vocabulary(tokens, kinds, pre=pre, merges=merges, eos=2, bos=1, **options)


def sentencepiece(spaces: str = "▁▁") -> Vocabulary:
    """A small vocabulary with scores: bytes, letters, and pieces made of them, best first."""
    pieces = [*"etaoinshrdlu", "▁", "th", "he", "in", "▁t", "▁th", "▁the", "the", "an", "on", "ing"]
    pieces += [spaces, "▁a", "and", "▁and", "er", "re", "her", "▁s", "is", "sh", "▁i", "▁in"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces)
    scores = [0.0] * 259 + [-1e9] * 13 + [-float(i) for i in range(len(pieces) - 13)]
    more = {"unknown_token_id": 0}
    return Vocabulary(tokens, kinds, "llama", "default", scores=scores, eos=2, bos=1, more=more)


def tensors_of(architecture: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights, as the file spells them: query and key rows and norms are not undone."""
    rng = np.random.default_rng(seed)
    d = D // H
    gemma, moe = "gemma" in architecture, "moe" in architecture

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)

    def near_one(size: int) -> np.ndarray:
        return (1 + 0.1 * rng.standard_normal(size)).astype(np.float32)

    made = {"token_embd.weight": normal(VOCAB, D), "output_norm.weight": near_one(D)}
    if architecture in ("llama", "qwen2", "qwen3moe"):
        made["output.weight"] = normal(VOCAB, D)
    for i in range(LAYERS):
        layer = {"attn_q.weight": normal(H * d, D), "attn_k.weight": normal(K * d, D)}
        layer |= {"attn_v.weight": normal(K * d, D), "attn_output.weight": normal(D, H * d)}
        layer |= {"attn_norm.weight": near_one(D), "ffn_norm.weight": near_one(D)}
        if architecture == "qwen2":
            sizes = {"q": H * d, "k": K * d, "v": K * d}
            layer |= {f"attn_{n}.bias": normal(size) for n, size in sizes.items()}
        if architecture in ("qwen3", "qwen3moe", "gemma3"):
            layer |= {f"attn_{n}_norm.weight": near_one(d) for n in "qk"}
        if gemma:
            layer |= {f"post_{n}.weight": near_one(D) for n in ("attention_norm", "ffw_norm")}
        if moe:
            layer["ffn_gate_inp.weight"] = normal(EXPERTS, D)
            layer |= {f"ffn_{n}_exps.weight": normal(EXPERTS, EXPERT_F, D) for n in ("gate", "up")}
            layer["ffn_down_exps.weight"] = normal(EXPERTS, D, EXPERT_F)
        else:
            layer |= {f"ffn_{n}.weight": normal(F, D) for n in ("gate", "up")}
            layer["ffn_down.weight"] = normal(D, F)
        made |= {f"blk.{i}.{name}": tensor for name, tensor in layer.items()}
    return made


def values_of(architecture: str) -> dict[str, Any]:
    """The metadata of the decoder, without the architecture's name before the keys."""
    made = {
        "block_count": LAYERS,
        "context_length": LENGTH,
        "embedding_length": D,
        "feed_forward_length": F,
        "attention.head_count": H,
        "attention.head_count_kv": K,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10_000.0,
    }
    if architecture != "llama":
        made |= {"attention.key_length": D // H, "attention.value_length": D // H}
    if "moe" in architecture:
        made |= {"expert_count": EXPERTS, "expert_used_count": CHOSEN}
        made["expert_feed_forward_length"] = EXPERT_F
    if "gemma" in architecture:
        made["attention.sliding_window"] = 4
    if architecture == "gemma2":
        made |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    return made


def write(
    path: pathlib.Path,
    architecture: str = "llama",
    *,
    vocabulary: Vocabulary = LETTERS,
    tensors: Mapping[str, np.ndarray] | None = None,
    values: Mapping[str, Any] | None = None,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> pathlib.Path:
    """Write a file; matrices are of type `kind`, a value of None is left out."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**values_of(architecture), **(values or {})}.items():
        if value is not None:
            _add(writer, f"{architecture}.{key}", value)
    _add_vocabulary(writer, vocabulary)
    for name, tensor in (tensors_of(architecture) if tensors is None else tensors).items():
        if tensor.ndim > 1 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    kinds |= {str: writer.add_string, list: writer.add_array}
    kinds[type(value)](key, value)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    writer.add_eos_token_id(vocabulary.eos)
    if vocabulary.bos is not None:
        writer.add_bos_token_id(vocabulary.bos)
    if vocabulary.template is not None:
        writer.add_chat_template(vocabulary.template)
    for key, value in vocabulary.more.items():
        _add(writer, f"tokenizer.ggml.{key}", value)
