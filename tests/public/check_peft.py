"""Check that PEFT computes what our adapters do, from the folder that we write.

The first command in an environment with polopt, the second in one with transformers 5, torch 2 for
CPU and peft 0.21:

    PYTHONPATH=../.. python check_peft.py write FOLDER
    python check_peft.py check FOLDER

Logits of the base, of the base with adapters and of the merged model are compared, for adapters of
all layers and of some. PEFT then writes the adapters again, and `check_peft.py read FOLDER`, with
polopt, reads those.
"""

import pathlib
import sys

import numpy as np

CASES = {"all": ("(attention|mlp)/.*",), "some": ("layers/1/attention/(q|v)", "layers/0/mlp/down")}
TOKENS = np.random.default_rng(0).integers(0, 96, (3, 11))


def model_of(case):
    """A base, and adapters whose B is not zero."""
    import jax

    from polopt.models import DecoderConfig, LanguageModel
    from polopt.models.lora import LoraModel, join

    config = DecoderConfig(
        vocab_size=96,
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        mlp_size=48,
        max_length=64,
        qk_norm=True,
    )
    base = LanguageModel(config)
    model = LoraModel.over(base, rank=4, alpha=6.0, targets=CASES[case])
    weights = jax.tree.map(lambda x: x * 6 if x.ndim == 2 else x, base.init(jax.random.key(0)))
    adapters = model.init(jax.random.key(1), weights)["adapters"]
    leaves, tree = jax.tree.flatten(adapters)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noise = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return base, model, join(jax.tree.unflatten(tree, noise), weights)


def write(folder):
    """Base, adapters, merged model and logits of each case."""
    from polopt.models import huggingface
    from polopt.models.peft import save_peft

    for case in CASES:
        base, model, params = model_of(case)
        huggingface.save(folder / case / "base", base, params["base"])
        huggingface.save(folder / case / "merged", *model.merge(params))
        save_peft(folder / case / "adapters", model, params, str(folder / case / "base"))
        logits = model.logits(params, model.hidden(params, TOKENS))
        plain = base.logits(params["base"], base.hidden(params["base"], TOKENS))
        np.savez(folder / case / "logits.npz", adapted=logits, base=plain)


def check(folder):
    """What transformers and PEFT make of them."""
    import peft
    import torch
    import transformers

    def logits(model):
        with torch.no_grad():
            return model.eval()(torch.tensor(TOKENS)).logits.numpy()

    for case in CASES:
        wanted = np.load(folder / case / "logits.npz")
        auto = transformers.AutoModelForCausalLM.from_pretrained
        gaps = {"base": logits(auto(folder / case / "base", dtype="float32")) - wanted["base"]}
        merged = logits(auto(folder / case / "merged", dtype="float32"))
        gaps["merged"] = merged - wanted["adapted"]
        whole = peft.PeftModel.from_pretrained(
            auto(folder / case / "base", dtype="float32"), folder / case / "adapters"
        )
        gaps["adapters"] = logits(whole) - wanted["adapted"]
        effect = np.abs(wanted["adapted"] - wanted["base"]).max()
        worst = {name: float(np.abs(gap).max()) for name, gap in gaps.items()}
        print(f"{case}: effect of the adapters {effect:.3g}, largest differences {worst}")
        assert effect > 0.1
        assert max(worst.values()) < 1e-4
        whole.save_pretrained(folder / case / "again")


def read(folder):
    """Adapters that PEFT wrote."""
    import jax

    from polopt.models.peft import load_peft

    for case in CASES:
        base, model, params = model_of(case)
        again, adapters = load_peft(folder / case / "again", base)
        assert (again.rank, again.alpha) == (model.rank, model.alpha)
        assert again.adapted() == model.adapted()
        jax.tree.map(np.testing.assert_array_equal, adapters, params["adapters"])
        print(f"{case}: read back, equal")


if __name__ == "__main__":
    {"write": write, "check": check, "read": read}[sys.argv[1]](pathlib.Path(sys.argv[2]))
