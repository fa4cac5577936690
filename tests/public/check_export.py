"""What polopt exports, read by transformers: the same logits, token ids and ends of a text.

In two steps, as no environment needs both packages:

    cd tests/public
    python check_export.py write /tmp/exported              # where polopt is
    hf/bin/python check_export.py read /tmp/exported        # as in freeze_transformers.py

Written are all frozen checkpoints in float32, one of them also in shards and in bfloat16 (which has
room for their values), and the model that ships with polopt, with its tokenizer and a chat
template. The second step prints the greatest difference of logits for each, and fails above 2e-5.

Measured with transformers 5.23.0: at most 5e-7 on the frozen checkpoints, and 5e-6 on the shipped
model; ids, ends and the rendered conversation are equal. transformers 4.51.3 reads the same folders
and agrees but for what it does not have: yarn's `truncate`, and Qwen's windows in eager attention.
"""

import dataclasses
import json
import pathlib
import sys

import numpy as np
from checkpoints import FOLDER, frozen

TEXTS = ["What is 12 + 345?", "<answer>7</answer>", "Grüße, 世界\n\n  <eos>", ""]
CHAT = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}</answer>{% endfor %}"
CLOSE = 2e-5


def write(root: pathlib.Path) -> None:
    """Export, with polopt's own logits beside each folder."""
    import jax.numpy as jnp
    import safetensors.numpy
    from checkpoints import tensors

    from polopt.models import base, huggingface

    def export(name, model, params, tokens, said=None, tokenizer=None, **options):
        huggingface.save(root / name, model, params, tokenizer, **options)
        said = (
            np.asarray(model.logits(params, model.hidden(params, tokens))) if said is None else said
        )
        np.savez(root / f"{name}.npz", tokens=tokens, logits=said)

    for case in sorted(path.stem for path in FOLDER.glob("*.npz")):
        meta, said = frozen(case)
        source = root / "source" / case
        source.mkdir(parents=True)
        (source / "config.json").write_text(json.dumps(meta["config"]))
        made = {k: v.astype(jnp.dtype(meta["dtype"])) for k, v in tensors(meta).items()}
        safetensors.numpy.save_file(made, source / "model.safetensors", {"format": "pt"})
        model, params, _ = huggingface.load(source)
        real = np.arange(said["tokens"].shape[1])[None] < said["length"][:, None]
        rows = np.where(real, said["tokens"], 0)[[0, 3]]  # those without padding
        export(case, model, params, rows, said["logits"][[0, 3]])
        if case == "llama_biases":
            export("in_shards", model, params, rows, said["logits"][[0, 3]], max_shard_bytes=9000)
            export("in_bfloat16", model, params, rows, said["logits"][[0, 3]], dtype="bfloat16")
    model, params, tokenizer = base.load()
    tokenizer = dataclasses.replace(tokenizer, eos=("<eos>", "</answer>"), chat_template=CHAT)
    row = np.array([tokenizer.prompt(TEXTS[0])], np.int32)
    export("shipped", model, params, row, tokenizer=tokenizer)
    ids = {"texts": tokenizer.encode_all(TEXTS), "chat": row[0].tolist(), "eos": tokenizer.eos_ids}
    (root / "ids.json").write_text(json.dumps(ids))


def read(root: pathlib.Path) -> None:
    """Load every folder with transformers, and compare."""
    import torch
    import transformers

    failed = []
    for path in sorted(root.glob("*.npz")):
        with np.load(path) as file:
            tokens, said = file["tokens"], file["logits"]
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            root / path.stem, attn_implementation="eager", output_loading_info=True
        )
        assert not any(info.values()), info
        with torch.no_grad():
            got = model.float().eval()(torch.tensor(tokens.astype(np.int64))).logits.numpy()
        difference = float(np.abs(got - said).max())
        print(f"{path.stem:24} {type(model).__name__:24} {difference:.2g}")
        if not difference <= CLOSE:
            failed.append(path.stem)
    tokenizer = transformers.AutoTokenizer.from_pretrained(root / "shipped")
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    messages = [{"role": "user", "content": TEXTS[0]}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = {
        "texts": [tokenizer(text, **plain)["input_ids"] for text in TEXTS],
        "chat": tokenizer(chat, add_special_tokens=False)["input_ids"],
        "eos": transformers.GenerationConfig.from_pretrained(root / "shipped").eos_token_id,
    }
    for name, wanted in json.loads((root / "ids.json").read_text()).items():
        print(f"{name:24} {'equal' if ids[name] == wanted else (ids[name], wanted)}")
        failed += [] if ids[name] == wanted else [name]
    if failed:
        sys.exit(f"differ: {', '.join(failed)}")


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](pathlib.Path(sys.argv[2]))
