"""Freeze transformers' logits on tiny checkpoints of every family, with all options on.

Run in an environment with transformers 5.23.0, torch 2 for CPU, safetensors and NumPy:

    uv venv hf && uv pip install --python hf transformers==5.23.0 torch safetensors
    cd tests/public && hf/bin/python freeze_transformers.py [case ...]

A case is made by transformers (its names and shapes), filled with the values of `checkpoints.py`,
loaded again by transformers in float32, and run on ragged rows padded on the right. The spelling of
transformers 4 is derived here, and must give transformers the same logits.
"""

import copy
import json
import pathlib
import sys
import tempfile

import numpy as np
import safetensors.torch
import torch
import transformers
from checkpoints import FOLDER, rows, tensors

SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
OWN_YARN = {  # bounds that both fall within the frequencies
    "original_max_position_embeddings": 48,
    "truncate": False,
    "beta_fast": 2.0,
    "beta_slow": 0.5,
    "attention_factor": 1.3,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
LOCAL, GLOBAL = "sliding_attention", "full_attention"
GEMMA3 = {
    "num_hidden_layers": 4,
    "query_pre_attn_scalar": 60,
    "sliding_window": 5,
    "layer_types": [LOCAL, LOCAL, GLOBAL, LOCAL],
    "rope_parameters": {
        GLOBAL: {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        LOCAL: {"rope_type": "default", "rope_theta": 100.0},
    },
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
WINDOW = {"use_sliding_window": True, "sliding_window": 5}
# case: (model_type, type of the weights, options)
CASES = {
    "llama_biases": (
        "llama",
        "bfloat16",
        {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3},
    ),
    "llama_linear": (
        "llama",
        "float16",
        {
            "tie_word_embeddings": True,
            "rope_parameters": LINEAR,
        },
    ),
    "llama_yarn": (
        "llama",
        "float32",
        {"rope_parameters": YARN | OWN_YARN},
    ),
    "qwen2_plain": ("qwen2", "bfloat16", {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "qwen2_window": (
        "qwen2",
        "bfloat16",
        WINDOW | {"max_window_layers": 1, "rope_parameters": YARN},
    ),
    "qwen3_plain": (
        "qwen3",
        "bfloat16",
        {"tie_word_embeddings": True, "rope_parameters": YARN},
    ),
    "qwen3_window": (
        "qwen3",
        "bfloat16",
        WINDOW | {"max_window_layers": 2, "attention_bias": True},
    ),
    "gemma2": (
        "gemma2",
        "bfloat16",
        {
            "sliding_window": 5,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "attention_bias": True,
        },
    ),
    "gemma3_text": ("gemma3_text", "bfloat16", GEMMA3 | {"final_logit_softcapping": 4.0}),
    "gemma3": (
        "gemma3",
        "bfloat16",
        {
            "text_config": {k: v for k, v in SIZES.items() if k != "eos_token_id"} | GEMMA3,
            "vision_config": {
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "boi_token_index": 46,
            "eoi_token_index": 45,
            "image_token_index": 47,
        },
    ),
    "qwen3_moe_normalised": (
        "qwen3_moe",
        "bfloat16",
        EXPERTS | WINDOW | {"norm_topk_prob": True, "mlp_only_layers": [1]},
    ),
    "qwen3_moe_plain": (
        "qwen3_moe",
        "bfloat16",
        EXPERTS | {"norm_topk_prob": False, "decoder_sparse_step": 2, "attention_bias": True},
    ),
}


def older(config: dict) -> dict:
    """The same configuration as transformers 4 spells it."""
    made = copy.deepcopy(config)
    text = made.get("text_config", made)
    rope, kind = text.pop("rope_parameters"), "type"
    if GLOBAL in rope:
        kind = "rope_type"  # transformers 5 reads no "type" in Gemma 3
        text["rope_local_base_freq"] = rope[LOCAL]["rope_theta"]
        rope = rope[GLOBAL]
        text["sliding_window_pattern"] = 3
        text.pop("layer_types")
        text.pop("_sliding_window_pattern", None)
    text["rope_theta"] = rope.pop("rope_theta")
    if rope["rope_type"] != "default":
        text["rope_scaling"] = {kind if k == "rope_type" else k: v for k, v in rope.items()}
    if text["model_type"] in ("qwen2", "qwen3", "gemma2"):
        text.pop("layer_types")  # follow from the window's own options
    if "num_local_experts" in text:
        text["num_experts"] = text.pop("num_local_experts")
    made["torch_dtype"] = made.pop("dtype")
    made["transformers_version"] = "4.51.0"
    return made


def logits(folder: pathlib.Path, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What transformers says of rows, in float32; zero on the padding."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    given = {"input_ids": torch.tensor(tokens.astype(np.int64)), "attention_mask": mask}
    if model.config.model_type == "gemma3":
        given["token_type_ids"] = torch.zeros_like(given["input_ids"])
    with torch.no_grad():
        out = model(**given).logits.numpy()
    return np.where(mask.numpy()[:, :, None] > 0, out, 0)


def freeze(case: str) -> None:
    """Write `frozen/models/<case>.npz`."""
    family, dtype, options = CASES[case]
    given = options if family == "gemma3" else SIZES | options
    config = transformers.AutoConfig.for_model(family, **copy.deepcopy(given))
    of = (
        transformers.Gemma3ForConditionalGeneration
        if family == "gemma3"
        else transformers.AutoModelForCausalLM
    )
    make = of if family == "gemma3" else of.from_config
    model = make(config).to(getattr(torch, dtype))
    tokens, length, prompt_length = rows()
    mask = torch.tensor((np.arange(tokens.shape[1])[None] < length[:, None]).astype(np.int64))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model.save_pretrained(folder)
        saved = safetensors.torch.load_file(folder / "model.safetensors")
        written = json.loads((folder / "config.json").read_text())
        meta = {
            "version": transformers.__version__,
            "case": case,
            "dtype": dtype,
            "config": written,
            "older": older(written),
            "tensors": {key: list(value.shape) for key, value in saved.items()},
        }
        assert {str(value.dtype) for value in saved.values()} == {f"torch.{dtype}"}
        filled = {
            key: torch.tensor(value).to(getattr(torch, dtype))
            for key, value in tensors(meta).items()
        }
        safetensors.torch.save_file(filled, folder / "model.safetensors", {"format": "pt"})
        out = logits(folder, tokens, mask)
        (folder / "config.json").write_text(json.dumps(meta["older"]))
        again = logits(folder, tokens, mask)
    assert np.array_equal(out, again), (case, np.abs(out - again).max())
    assert np.isfinite(out).all()
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{case}.npz"
    arrays = {"tokens": tokens, "length": length, "prompt_length": prompt_length, "logits": out}
    np.savez_compressed(path, meta=np.array(json.dumps(meta)), **arrays)
    print(f"{path.name}: logits up to {np.abs(out).max():.3g}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        freeze(case)
