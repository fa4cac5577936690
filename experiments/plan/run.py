"""Plans for slices that nobody here has, by the TPU's compiler; writes results.json.

    pip install -e '.[tpu]' && python experiments/plan/run.py [NAME ...]

Names are those of `CASES`; all of them if none is given. A case that is there already is replaced.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time

SMALL = "--model base --prompt-length 64 --max-new-tokens 64"
LARGE = "--model llama3-8b --remat --micro-batch 1 --update-only --slice v5e-16"
GENERATIONS = ("v4-8", "v5e-4", "v5p-8", "v6e-4")
CASES = {
    **{f"base-{name}": f"{SMALL} --mesh fsdp=2 tensor=2 --slice {name}" for name in GENERATIONS},
    **{f"base-pmap-{name}": f"{SMALL} --parallel pmap --slice {name}" for name in GENERATIONS},
    "qwen2.5-0.5b-lora-v5e-1": (
        "--model qwen2.5-0.5b --slice v5e-1 --lora-rank 16 --remat --prompts 4 --micro-batch 2"
    ),
    "llama3-8b-v5e-16": f"{LARGE} --mesh fsdp=16",
    "llama3-8b-tensor-v5e-16": f"{LARGE} --mesh fsdp=4 tensor=4",
    "llama3-8b-v5e-8": (
        "--model llama3-8b --remat --micro-batch 1 --mesh fsdp=8 --update-only --slice v5e-8 "
        "--search 1"
    ),
    "llama3-70b-v5p-64": (
        "--model llama3-70b --remat --micro-batch 1 --mesh fsdp=8 tensor=4 --update-only "
        "--slice v5p-64"
    ),
}
OUT = pathlib.Path(__file__).parent / "results.json"


def main() -> None:
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    for name in sys.argv[1:] or CASES:
        flags = CASES[name].split()
        flags += [] if "--search" in flags else ["--search", "0"]
        command = [sys.executable, "-m", "polopt", "plan", "--json", *flags]
        start = time.perf_counter()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        found[name] = {
            "command": f"polopt plan {' '.join(flags)}",
            "seconds": time.perf_counter() - start,
            "peak_rss_of_all": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
            **versions(),
            **json.loads(done.stdout),
        }
        OUT.write_text(json.dumps(found, indent=1) + "\n")
        print(row(name, found[name]), flush=True)


def versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "libtpu")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {**found, "machine": f"{os.cpu_count()} CPUs, {platform.machine()}"}


def row(name: str, made: dict) -> str:
    """A line of the README's table."""
    needed = ", ".join(
        f"{step} {gib(program['needed'])}" for step, program in made["programs"].items()
    )
    verdict = "fits" if made["fits"] else "does not"
    return f"| {name} | {verdict} | {needed} | {made['seconds']:.0f} |"


def gib(size: int | None) -> str:
    return "refused" if size is None else f"{size / 2**30:.2f}"


if __name__ == "__main__":
    main()
