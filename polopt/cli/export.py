"""``polopt export``: a model as a folder that other libraries load."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from polopt.cli.parse import read_arguments
from polopt.errors import PoloptError, UsageError

_EPILOG = """\
examples:
  polopt export base my_base                      the model that polopt ships
  polopt export runs/grpo-chain_sum-0 trained     a run, its adapters merged
  polopt export runs/grpo-chain_sum-0 adapter --adapter
  polopt export model.gguf model --dtype bfloat16"""


def run(argv: Sequence[str]) -> int:
    """Write the folder, and say in one line where it is and how large."""
    parser = argparse.ArgumentParser(
        prog="polopt export",
        description="Write a model as a Hugging Face folder, or its adapters as PEFT's.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument(
        "model", nargs="?", help="base, smollm2-135m, a .gguf file, or a model's or a run's folder"
    )
    parser.add_argument("out", nargs="?", help="folder to write; it must not exist yet")
    parser.add_argument(
        "--adapter", action="store_true", help="write only the adapters that a run trained"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="of the weights in the files; float32 unless given",
    )
    args = read_arguments(parser, argv)
    if args.out is None:
        raise UsageError("which model, and into which folder? polopt export MODEL OUT")
    if Path(args.out).exists():
        raise PoloptError(f"{args.out} exists already: choose another folder")
    if not args.adapter:
        _export_model(args.model, args.out, args.dtype or "float32")
        print(f"model  {args.out}  {_size(args.out)}")
        return 0
    if args.dtype is not None:
        raise UsageError("--dtype is of whole models: adapters are written in float32")
    base = _export_adapter(args.model, args.out)
    print(f"adapter  {args.out}  {_size(args.out)}, over {base}")
    return 0


def _export_model(name: str, out: str, dtype: str) -> None:
    from polopt.models import huggingface
    from polopt.train.policy import load_policy

    policy = load_policy(name)
    huggingface.save(out, policy.model, policy.params, policy.tokenizer, dtype=dtype)


def _export_adapter(name: str, out: str) -> str:
    """Write the adapters of a run; returns the name of the model that they go over."""
    from polopt.models.lora import LoraModel
    from polopt.models.peft import save_peft
    from polopt.train.policy import is_run, load_trained
    from polopt.train.sft_config import read_run

    policy = load_trained(name) if is_run(name) else None
    if policy is None or not isinstance(policy.model, LoraModel):
        raise PoloptError(f"{name} has no adapters: only a run with --lora-rank has")
    base = read_run(name).model
    save_peft(out, policy.model, policy.params, base)
    return base


def _size(folder: str) -> str:
    size = sum(path.stat().st_size for path in Path(folder).iterdir())
    return f"{size / 1e6:.1f} MB"
