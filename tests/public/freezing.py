"""How a public implementation is frozen: run it on seeded batches, keep what it says."""

import json
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
from batches import PublicBatch, PublicLogits, project, public_batch, public_logits

COUNT, WHOLE = 200, 3  # batches of a case, and how many of them are kept entry by entry
FOLDER = pathlib.Path(__file__).parent / "frozen"

Values = dict[str, np.ndarray]  # {"loss": [], "advantage": [N,T], "gradient": [N,T], ...}


def batches(narrow: dict) -> Iterator[tuple[int, PublicBatch | PublicLogits]]:
    """The first 200 batches that a package can take, with their seeds.

    `narrow["singletons"]` False skips batches with a group of one; `narrow["logits"]` True gives
    logits in place of log-probabilities.
    """
    if narrow.get("logits"):
        yield from ((seed, public_logits(seed)) for seed in range(COUNT))
        return
    options = {k: v for k, v in narrow.items() if k not in ("singletons", "logits")}
    seed = found = 0
    while found < COUNT:
        batch = public_batch(seed, **options)
        if narrow.get("singletons", True) or not batch.has_singleton:
            found += 1
            yield seed, batch
        seed += 1


def freeze(package: str, version: str, case: str, run: Callable[..., Values], **settings) -> None:
    """Run one case and write `frozen/<package>_<case>.npz`; `settings["batches"]` narrows them."""
    kept: dict[str, list] = {}
    for number, (seed, batch) in enumerate(batches(settings.get("batches", {}))):
        values = {name: np.asarray(x, np.float64) for name, x in run(batch).items()}
        kept.setdefault("seed", []).append(seed)
        for name, x in values.items():
            short = x if x.ndim == 0 else project(x, batch.mask)
            kept.setdefault(name, []).append(short)
            if number < WHOLE:
                whole = np.where(batch.mask, x, 0) if x.shape == batch.mask.shape else x
                kept.setdefault(f"whole_{name}", []).append(whole)
    meta = json.dumps({"package": package, "version": version, "case": case, **settings})
    path = FOLDER / f"{package}_{case}.npz"
    np.savez_compressed(path, meta=np.array(meta), **{k: np.array(v) for k, v in kept.items()})
    print(f"{path.name}: {len(kept['seed'])} batches, {path.stat().st_size} bytes")
