"""Memory that loading a model takes: the peak over the model in the type that it is loaded in.

    python experiments/bench/load_memory.py                      a folder of 1 GB, made for it
    python experiments/bench/load_memory.py model.gguf FOLDER    others

Each load runs in a process of its own. Counted is its largest resident memory less what it has
once everything is imported and the device is up; issue 5 asks for at most 1.3 times the model.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

SHARD = 200 * 10**6
CASES = ("float32", "bfloat16")


def make(folder: str) -> None:
    """A Llama of half a billion random weights in bfloat16, in shards."""
    import jax
    import ml_dtypes
    import numpy as np

    from polopt.models import DecoderConfig, LanguageModel, huggingface

    config = DecoderConfig(
        vocab_size=32768,
        hidden_size=1536,
        num_layers=16,
        num_heads=12,
        num_kv_heads=4,
        head_dim=128,
        mlp_size=4608,
        max_length=2048,
        tie_embeddings=False,
    )
    model = LanguageModel(config)
    rng = np.random.default_rng(0)

    def random(leaf):
        values = rng.integers(0, 1 << 14, leaf.shape, np.uint16)  # of bfloat16: all finite
        return values.view(ml_dtypes.bfloat16)

    params = jax.tree.map(random, jax.eval_shape(model.init, jax.random.key(0)))
    huggingface.save(folder, model, params, max_shard_bytes=SHARD)


def load(path: str, dtype: str) -> None:
    """Load, and print what it took."""
    import jax
    import jax.numpy as jnp

    from polopt.models import gguf, huggingface

    jnp.zeros(1).block_until_ready()
    before, start = _resident(), time.perf_counter()
    load_file = gguf.load if path.endswith(".gguf") else huggingface.load
    params = jax.block_until_ready(load_file(path, dtype=dtype)[1])
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    print(json.dumps({"peak": peak - before, "size": size, "seconds": seconds}))


def _resident() -> int:
    """Bytes."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def _child(*args: str) -> str:
    command = [sys.executable, __file__, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="folders and .gguf files")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        what, *rest = args.child
        {"make": make, "load": load}[what](*rest)
        return
    with tempfile.TemporaryDirectory() as made:
        if not args.models:
            _child("--child", "make", f"{made}/model")
        for path in args.models or [f"{made}/model"]:
            for dtype in CASES:
                told = json.loads(_child("--child", "load", path, dtype))
                print(
                    f"{pathlib.Path(path).name:32} {dtype:9} model {told['size'] / 1e9:.3f} GB, "
                    f"peak {told['peak'] / 1e9:.3f} GB = {told['peak'] / told['size']:.2f}x, "
                    f"{told['seconds']:.1f} s"
                )


if __name__ == "__main__":
    main()
