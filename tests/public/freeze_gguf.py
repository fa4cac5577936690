"""Freeze what transformers reads from the tiny GGUF files of `tests/models/tiny_gguf.py`.

Logits of every architecture (float32, eager attention), and ids of texts under every way of cutting
text that transformers has; and a little of SmolLM2-135M-Instruct. Environment: torch, transformers
5.23, accelerate, gguf.

    cd tests/public && python freeze_gguf.py SmolLM2-135M-Instruct.Q4_1.gguf
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from models import tiny_gguf  # noqa: E402

ARCHITECTURES = ("llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3")
PRE = ("default", "llama-bpe", "qwen2", "tekken", "gpt-4o")
TEXTS = (
    "Add up 12, 345 and 6789: it's 7146.",
    "  two spaces\n\n\tand a tab;  they'LL see x=y+1 (ok?)",
    "naïve CamelCase straße İstanbul 東京 ٣٤ — “quoted”...",
    "the thing in the sand, and her  other hand",
    "",
)
TOKENS = [5, 17, 3, 40, 40, 2, 29, 11, 8, 33]


def logits(folder: pathlib.Path, architecture: str) -> list[list[float]]:
    tiny_gguf.write(folder / "tiny.gguf", architecture)
    config = transformers.AutoConfig.from_pretrained(folder, gguf_file="tiny.gguf")
    d = tiny_gguf.D // tiny_gguf.H
    # What the file says and transformers does not read, or llama.cpp takes from the size.
    told = {"head_dim": d, "query_pre_attn_scalar": d} if architecture != "llama" else {}
    told |= {"moe_intermediate_size": tiny_gguf.EXPERT_F} if "moe" in architecture else {}
    for name, value in told.items():
        setattr(config, name, value)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file="tiny.gguf",
        config=config,
        dtype=torch.float32,
        attn_implementation="eager",
    )
    with torch.no_grad():
        made = model(torch.tensor([TOKENS])).logits[0].numpy()
    return [[float(f"{x:.7g}") for x in row] for row in made]


def ids(folder: pathlib.Path, architecture: str, vocabulary) -> list[list[int]]:
    tiny_gguf.write(folder / "tiny.gguf", architecture, vocabulary=vocabulary, tensors={})
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file="tiny.gguf")
    return [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]


def smollm2(path: pathlib.Path) -> dict:
    """Ids of texts and prompts, and the ten best first tokens of an answer."""
    where = {"gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **where)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, dtype=torch.float32, attn_implementation="eager", **where
    )
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in TEXTS
    ]
    with torch.no_grad():
        best = model(torch.tensor(prompts[:1])).logits[0, -1].topk(10)
    return {
        "texts": TEXTS,
        "ids": [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS],
        "prompts": prompts,
        "best": best.indices.tolist(),
        "logits": best.values.tolist(),
    }


def main() -> None:
    made = {"package": f"transformers {transformers.__version__}", "tokens": TOKENS, "texts": TEXTS}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        made["logits"] = {a: logits(folder, a) for a in ARCHITECTURES}
        made["ids"] = {pre: ids(folder, "llama", tiny_gguf.byte_level(pre)) for pre in PRE}
        made["ids"]["llama"] = ids(folder, "llama", tiny_gguf.sentencepiece())
        made["ids"]["gemma"] = ids(folder, "gemma2", tiny_gguf.sentencepiece("  "))
    made["smollm2"] = smollm2(pathlib.Path(sys.argv[1]))
    (HERE / "frozen" / "gguf.json").write_text(json.dumps(made) + "\n", encoding="utf-8")
    print({a: np.abs(rows).max() for a, rows in made["logits"].items()})


if __name__ == "__main__":
    main()
