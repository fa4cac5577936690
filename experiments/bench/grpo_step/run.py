"""One whole GRPO step (generate, score, update) of polopt, TRL and tunix, side by side.

    python experiments/bench/grpo_step/run.py [--cases a b c] [--pairs 5]

Each library runs in a process and, but for polopt, an environment of its own, made under `--cache`
on first use. All start from the same exported weights. First the gradients of one batch are
compared; only then whole steps are timed, one library at a time, in turn, and ratios are taken
within a turn: the speed of the machine drifts. Memory is the most that is resident during a step,
in a process that did not compile (JAX's programs come from its cache there).
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys

import numpy as np
from safetensors.numpy import load_file
from serving import CORES, Worker
from workload import CASES, Case

PEERS = {
    "trl": ["torch==2.13.0", "trl==1.16.0", "transformers", "safetensors"],
    "tunix": ["google-tunix==0.1.7", "safetensors"],
}
# Most of a peer's time that a part may take: (whole step, generation, update).
TARGETS = {
    "tiny": dict.fromkeys(("trl", "tunix"), (None, None, None)),
    "a": {"trl": (0.45, 0.4, 0.55), "tunix": (0.45, 0.4, 0.62)},
    "b": {"trl": (0.2, None, None), "tunix": (0.2, None, None)},
    "c": {"trl": (0.35, None, None), "tunix": (0.35, None, None)},
    "d": {"trl": (0.6, None, None), "tunix": (0.6, None, None)},
}
MEMORY = 1 / 3
STEPS_TO_COMPILE = {"polopt": 2, "tunix": 2, "trl": 0}
TOLERANCE = 2e-4  # of a gradient, relative to its largest entry
PARTS = ("whole", "generate", "update")


def environment(name: str, cache: pathlib.Path) -> str:
    """The interpreter of a peer's environment, which is made if it is not there."""
    folder = cache / name
    python = str(folder / "bin" / "python")
    done = folder / "complete"
    if not done.exists():
        print(f"making an environment for {name} in {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PEERS[name]], check=True)
        done.touch()
    return python


def compare_gradients(work: pathlib.Path, peers: list[str]) -> dict[str, float]:
    """The largest difference of any tensor, relative to the tensor's largest entry."""
    ours = load_file(work / "gradient_polopt" / "model.safetensors")
    worst = {}
    for peer in peers:
        theirs = load_file(work / f"gradient_{peer}.safetensors")
        if set(ours) != set(theirs):
            raise SystemExit(f"gradients of other tensors: {sorted(set(ours) ^ set(theirs))[:3]}")
        gaps = {k: np.abs(ours[k] - theirs[k]).max() / np.abs(theirs[k]).max() for k in ours}
        name = max(gaps, key=lambda k: gaps[k])
        worst[peer] = float(gaps[name])
        if not worst[peer] <= TOLERANCE:
            raise SystemExit(f"{peer}'s gradient of {name} differs by {worst[peer]:.1e}")
    return worst


def seconds(step: dict, part: str) -> float:
    """Of a step, or of a part of it."""
    return sum(step["wall"].values()) if part == "whole" else step["wall"][part]


def spread(values: list[float]) -> dict:
    """Median, least and most."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def measure(case: Case, pythons: dict[str, str], cache: pathlib.Path, pairs: int) -> dict:
    """Compare gradients, then time `pairs` turns."""
    work = cache / f"work-{os.getpid()}"
    work.mkdir(parents=True)

    def start(name: str) -> Worker:
        settings = dataclasses.asdict(case)
        return Worker(pythons[name], f"worker_{name}.py", work, settings, cache / "programs")

    ours = start("polopt")
    ours.ask("export")
    workers = {"polopt": ours, **{name: start(name) for name in pythons if name != "polopt"}}
    losses = {name: worker.ask("gradient")["loss"] for name, worker in workers.items()}
    gaps = compare_gradients(work, [name for name in workers if name != "polopt"])
    print(f"  losses {losses}\n  largest relative difference of a gradient {gaps}", flush=True)
    # Compile, and start again without what that left behind. tunix compiles in two of its steps.
    for name, worker in workers.items():
        for _ in range(STEPS_TO_COMPILE[name]):
            worker.ask("step")
        worker.close()
    workers = {name: start(name) for name in pythons}
    for name, worker in workers.items():
        for _ in range(max(1, STEPS_TO_COMPILE[name])):
            worker.ask("step")
    turns = [{name: worker.ask("step") for name, worker in workers.items()} for _ in range(pairs)]
    versions = {name: worker.ask("versions") for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    shutil.rmtree(work)
    return {"losses": losses, "gradients": gaps, "turns": turns, "versions": versions}


def summarise(name: str, case: Case, found: dict) -> dict:
    """Ratios within turns, with their spread, beside what was asked for."""
    turns = found["turns"]
    made = {"seconds": {}, "peak_mb": {}, "ratios": {}}
    for who in turns[0]:
        made["seconds"][who] = {p: spread([seconds(t[who], p) for t in turns]) for p in PARTS}
        made["peak_mb"][who] = max(turn[who]["peak"] for turn in turns)
        if who == "polopt":
            continue
        ratios = {
            part: spread([seconds(t["polopt"], part) / seconds(t[who], part) for t in turns])
            for part in PARTS
        }
        for part, target in zip(PARTS, TARGETS[name][who], strict=True):
            ratios[part]["target"] = target
        both = {side: max(turn[side]["peak"] for turn in turns) for side in ("polopt", who)}
        fixed = 16 * parameters(case) / 2**20 if name == "d" else 0.0
        memory = (both["polopt"] - fixed) / (both[who] - fixed)
        ratios["memory"] = {"median": memory, "low": memory, "high": memory}
        ratios["memory"]["target"] = None if name == "tiny" else MEMORY
        made["ratios"][who] = ratios
    return made


def parameters(case: Case) -> int:
    """Of the model."""
    wide = case.head_dim * (2 * case.heads + 2 * case.kv_heads)
    layer = case.hidden * (wide + 3 * case.mlp + 2)
    return case.vocab * case.hidden + case.layers * layer + case.hidden


def show(name: str, summary: dict) -> None:
    """A line for every ratio."""
    for who, parts in summary["seconds"].items():
        line = ", ".join(f"{part} {x['median']:.2f} s" for part, x in parts.items())
        print(f"  {who:7s} {line}, peak {summary['peak_mb'][who]:.0f} MB")
    for who, ratios in summary["ratios"].items():
        for part, x in ratios.items():
            target = x["target"]
            met = (
                ""
                if target is None
                else f"  target {target:.2f} " + ("met" if x["median"] <= target else "MISSED")
            )
            print(
                f"  ({name}) polopt / {who} {part:9s} {x['median']:.3f} "
                f"({x['low']:.3f} to {x['high']:.3f}){met}",
                flush=True,
            )


def chart(results: dict, path: pathlib.Path) -> None:
    """Seconds of a step by part, library and case."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(3.2 * len(results), 3.2), squeeze=False)
    for ax, (name, result) in zip(axes[0], results.items(), strict=True):
        for x, parts in enumerate(result["seconds"].values()):
            generate, update = parts["generate"]["median"], parts["update"]["median"]
            ax.bar(x, generate, color="tab:blue", label="generate" if x == 0 else None)
            ax.bar(x, update, bottom=generate, color="tab:orange", label="update" * (x == 0))
            ax.text(x, generate + update, f"{generate + update:.1f} s", ha="center", va="bottom")
        ax.set_xticks(range(len(result["seconds"])), list(result["seconds"]))
        case = result["case"]
        shortest = f"{case['shortest']} to " if case["shortest"] else ""
        ax.set_title(
            f"({name}) {case['prompts']} × {case['group']}, prompt {case['prompt']},\n"
            f"completions {shortest}{case['completion']}",
            fontsize=9,
        )
        ax.margins(y=0.15)
    axes[0][0].set_ylabel("seconds of a GRPO step")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure the cases, write results and chart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["a", "b", "c"])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--pairs", type=int, default=5, help="turns that are timed")
    default = pathlib.Path.home() / ".cache" / "polopt-bench"
    parser.add_argument("--cache", type=pathlib.Path, default=default)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    args = parser.parse_args()
    pythons = {"polopt": sys.executable, **{p: environment(p, args.cache) for p in args.peers}}
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    peers = " ".join(args.peers)
    for name in args.cases:
        print(f"({name}) {CASES[name]}", flush=True)
        found = measure(CASES[name], pythons, args.cache, args.pairs)
        results[name] = {
            "case": dataclasses.asdict(CASES[name]),
            "command": f"experiments/bench/grpo_step/run.py --cases {name} --peers {peers} "
            f"--pairs {args.pairs}",
            "hardware": f"{platform.machine()}, {CORES} of {os.cpu_count()} cores",
            "python": platform.python_version(),
            **found,
            **summarise(name, CASES[name], found),
        }
        show(name, results[name])
        path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    chart(dict(sorted(results.items())), args.out / "steps.png")


if __name__ == "__main__":
    main()
