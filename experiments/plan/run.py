"""Plans for slices that nobody here has, by the TPU's compiler; writes results.json.

    pip install -e '.[tpu]' && python experiments/plan/run.py [NAME ...]

Names are those of `CASES`; all of them if none is given. A case that is there already is replaced.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

SMALL = "--model base --prompt-length 64 --max-new-tokens 64 --mesh fsdp=2 tensor=2"
LARGE = "--model llama3-8b --algorithm gspo --remat --micro-batch 1"
CASES = {
    **{
        f"base on {name}": f"{SMALL} --slice {name}" for name in ("v4-8", "v5e-4", "v5p-8", "v6e-4")
    },
    "qwen2.5-0.5b with adapters on v5e-1": (
        "--model qwen2.5-0.5b --slice v5e-1 --lora-rank 16 --remat --prompts 4 --micro-batch 2"
    ),
    "llama3-8b on v5e-16": f"{LARGE} --slice v5e-16",
    "llama3-8b on v5e-4": f"{LARGE} --slice v5e-4",
    "llama3-8b, GRPO, on v5e-16": (
        "--model llama3-8b --algorithm grpo --remat --micro-batch 1 --slice v5e-16"
    ),
    "llama3-70b on v5p-64": (
        "--model llama3-70b --algorithm gspo --remat --micro-batch 1 --slice v5p-64"
    ),
}
OUT = pathlib.Path(__file__).parent / "results.json"


def main() -> None:
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    for name in sys.argv[1:] or CASES:
        flags = CASES[name].split()
        command = [sys.executable, "-m", "polopt", "plan", "--json", "--search", "0", *flags]
        start = time.perf_counter()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ)
        found[name] = {"seconds": time.perf_counter() - start, **json.loads(done.stdout)}
        OUT.write_text(json.dumps(found, indent=1) + "\n")
        print(row(name, found[name]), flush=True)


def row(name: str, made: dict) -> str:
    """A line of the README's table."""
    needed = [
        "refused" if program["needed"] is None else f"{program['needed'] / 2**30:.2f}"
        for program in made["programs"].values()
    ]
    steps = ", ".join(f"{step} {size}" for step, size in zip(made["programs"], needed, strict=True))
    return f"| {name} | {made['fits']} | {steps} | {made['seconds']:.0f} |"


if __name__ == "__main__":
    main()
