"""Model families of Hugging Face: their configurations and tensor names, and ours.

A family is one entry of `FAMILIES`: how its `config.json` is read and written, and what it calls
our modules. `DecoderConfig` knows no families: it is written by the first family that reads back
from what it wrote the same decoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from polopt.errors import PoloptError, did_you_mean
from polopt.models import family_configs as configs
from polopt.models.config import DecoderConfig
from polopt.models.options import Options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What a `model_type` means.

    Args:
      read: from the options of config.json to the fields of a `DecoderConfig`.
      write: the inverse, which leaves out what the family cannot express; None if folders of the
        family are only read.
      names: our modules to theirs; those of layers stand without the layer, and `{expert}` is the
        number of an expert, of which ours has all in one array.
      architecture: the class that transformers makes of it.
      roots: what may stand before all names but the head's.
      others: what names of tensors begin with that the text model has no use for.
    """

    read: Callable[[Options], configs.Fields]
    write: Callable[[DecoderConfig], dict[str, Any]] | None
    names: Mapping[str, str]
    architecture: str
    roots: tuple[str, ...] = ("model.",)
    others: tuple[str, ...] = ()


def read_config(values: Mapping[str, Any], where: str = "config.json") -> tuple[str, DecoderConfig]:
    """The family, and the decoder, that a `config.json` describes.

    Spellings of transformers 4 and 5 are read alike. What neither is honoured nor known to change
    nothing in the family is refused.

    Raises:
      PoloptError: no family of that name, an option that a decoder here cannot have, or a value of
        another type or range; in one line that says what is accepted.
    """
    options = Options(values, where)
    name = options.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        near = did_you_mean(name, FAMILIES) if isinstance(name, str) else ""
        raise PoloptError(
            f"{where}: no model family {name!r}: accepted are {', '.join(FAMILIES)}{near}"
        )
    fields = FAMILIES[name].read(options)
    options.check_unread()
    try:
        return name, DecoderConfig.from_dict(fields)
    except PoloptError as error:
        raise PoloptError(f"{where}: {error}") from error


def write_config(config: DecoderConfig) -> tuple[str, dict[str, Any]]:
    """The first family that has such a decoder, and its `config.json`.

    It is written as transformers 4 spells it, which transformers 5 reads too.

    Raises:
      PoloptError: no family has it; what each would lose is named.
    """
    wanted, losses = _plain(config), []
    for name, family in FAMILIES.items():
        if family.write is None:
            continue
        values = {"architectures": [family.architecture], "model_type": name}
        values |= family.write(config)
        try:
            got = _plain(read_config(values)[1])
        except PoloptError as error:
            losses.append(f"{name} ({error})")
            continue
        if got == wanted:
            return name, values
        fields = [f.name for f in dataclasses.fields(config)]
        lost = [field for field in fields if getattr(got, field) != getattr(wanted, field)]
        losses.append(f"{name} (other {', '.join(lost)})")
    raise PoloptError(f"no model family of Hugging Face has this decoder: {'; '.join(losses)}")


def _plain(config: DecoderConfig) -> DecoderConfig:
    """One of the equal ways to write the same decoder."""
    local = bool(config.local_layers)
    return dataclasses.replace(
        config,
        attention_scale=float(np.float32(config.score_scale)),
        embed_scale=float(np.float32(config.embed_scale)),
        window=config.window if local else None,
        local_rope_theta=config.local_rope_theta if local else None,
    )


@dataclasses.dataclass(frozen=True)
class Source:
    """What a leaf of the parameters is made of."""

    names: tuple[str, ...]  # of its tensors: one, or if stacked one per index of the first axis
    transposed: bool  # our kernels are [in,out]
    stacked: bool


def source_of(family: Family, root: str, path: tuple[str, ...], experts: int) -> Source:
    """Names of the tensors of a leaf.

    Args:
      family: whose names.
      root: one of its `roots`.
      path: of the leaf, as ("layers", "0", "attention", "q", "kernel").
      experts: of a layer.
    """
    layer = ""
    if path[0] == "layers":
        layer, path = f"layers.{path[1]}.", path[2:]
    if path[-1] not in _KINDS:
        name = f"{root}{layer}{family.names['.'.join(path)]}.weight"
        names = tuple(name.format(expert=e) for e in range(experts))
        return Source(names, transposed=True, stacked=True)
    kind, transposed = _KINDS[path[-1]]
    module = family.names[".".join(path[:-1])]
    root = "" if module == HEAD else root
    return Source((f"{root}{layer}{module}.{kind}",), transposed, stacked=False)


HEAD = "lm_head"
_KINDS = {  # our kinds of leaves: theirs, and whether ours is transposed
    "kernel": ("weight", True),
    "bias": ("bias", False),
    "scale": ("weight", False),
    "embedding": ("weight", False),
}
_NAMES = {
    "embed": "embed_tokens",
    "norm": "norm",
    "unembed": HEAD,
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_MOE_NAMES = {
    "experts.router": "mlp.gate",
    "experts.gate": "mlp.experts.{expert}.gate_proj",
    "experts.up": "mlp.experts.{expert}.up_proj",
    "experts.down": "mlp.experts.{expert}.down_proj",
}
_GEMMA_NAMES = {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_EYES = ("vision_tower.", "multi_modal_projector.")

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        read=configs.read_llama,
        write=configs.write_llama,
        names=_NAMES,
        architecture="LlamaForCausalLM",
    ),
    "qwen2": Family(
        read=configs.read_qwen2,
        write=configs.write_qwen2,
        names=_NAMES,
        architecture="Qwen2ForCausalLM",
    ),
    "qwen3": Family(
        read=configs.read_qwen3,
        write=configs.write_qwen3,
        names=_NAMES,
        architecture="Qwen3ForCausalLM",
    ),
    "qwen3_moe": Family(
        read=configs.read_qwen3_moe,
        write=configs.write_qwen3_moe,
        names=_NAMES | _MOE_NAMES,
        architecture="Qwen3MoeForCausalLM",
    ),
    "gemma2": Family(
        read=configs.read_gemma2,
        write=configs.write_gemma2,
        names=_NAMES | _GEMMA_NAMES,
        architecture="Gemma2ForCausalLM",
    ),
    "gemma3_text": Family(
        read=configs.read_gemma3_text,
        write=configs.write_gemma3_text,
        names=_NAMES | _GEMMA_NAMES,
        architecture="Gemma3ForCausalLM",
    ),
    "gemma3": Family(
        read=configs.read_gemma3,
        write=None,  # its text part is written as gemma3_text
        names=_NAMES | _GEMMA_NAMES,
        architecture="Gemma3ForConditionalGeneration",
        roots=("language_model.model.", "model.language_model."),
        others=(*_EYES, *(f"model.{name}" for name in _EYES)),
    ),
}
