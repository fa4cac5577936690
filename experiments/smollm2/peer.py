"""The peer's half: transformers reads the same file, float32 and eager attention.

In an environment of its own (torch, transformers, accelerate, gguf), from this folder:

    python peer.py SmolLM2-135M-Instruct.Q4_1.gguf peer.npz

Writes the logits of every position of `TEXTS`, those of the same model in float64 too, and greedy
answers to `QUESTIONS`.
"""

import argparse
import pathlib

import numpy as np
import torch
import transformers
from prompts import NEW_TOKENS, QUESTIONS, TEXTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    where = {"gguf_file": args.gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.gguf.parent, **where)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.gguf.parent, dtype=torch.float32, attn_implementation="eager", **where
    ).eval()
    version = f"transformers {transformers.__version__}, torch {torch.__version__}"
    made = {"version": np.array(version)}
    with torch.no_grad():
        made |= answers(model, tokenizer)
        texts = [
            tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            for text in TEXTS
        ]
        made |= {f"text_{n}": ids[0].numpy() for n, ids in enumerate(texts)}
        made |= {f"logits_{n}": model(ids).logits[0].numpy() for n, ids in enumerate(texts)}
        model = model.double()
        made |= {f"logits64_{n}": model(ids).logits[0].numpy() for n, ids in enumerate(texts)}
    np.savez(args.out, **made)


def answers(model, tokenizer) -> dict[str, np.ndarray]:
    """Prompts and their greedy continuations, one batch, whether or not a turn ends within."""
    asked = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in QUESTIONS
    ]
    width, filling = max(map(len, asked)), tokenizer.eos_token_id
    tokens = torch.tensor([[filling] * (width - len(ids)) + ids for ids in asked])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in asked])
    model.generation_config.eos_token_id = None
    done = model.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=filling,
    )
    prompts = {f"prompt_{n}": np.array(ids) for n, ids in enumerate(asked)}
    return prompts | {"answers": done[:, width:].numpy()}


if __name__ == "__main__":
    main()
