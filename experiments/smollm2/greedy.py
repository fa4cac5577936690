"""Is our SmolLM2-135M-Instruct the peer's: logits, and greedy answers token by token.

    python experiments/smollm2/greedy.py --gguf FILE --peer peer.npz

`peer.npz` is what `peer.py` wrote from the same file. Both compute in float32 from the same
dequantised weights. Continuations go on where a turn ends, so that all are of one length. Prints
the comparison and records it in `results.json`.
"""

import argparse
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from prompts import NEW_TOKENS, QUESTIONS, TEXTS

from polopt.models import gguf

HERE = pathlib.Path(__file__).parent


@functools.partial(jax.jit, static_argnums=0)
def answer(model, params, tokens, lengths):
    """i32[N,NEW_TOKENS] greedy continuations, and f32 how far the best token led the second."""
    prompt, hidden = model.prefill(params, tokens, lengths)
    cache = model.empty_cache(len(tokens), NEW_TOKENS)

    def step(carry, s):
        cache, hidden = carry
        best, chosen = jax.lax.top_k(model.logits(params, hidden), 2)
        cache, hidden = model.decode(params, prompt, cache, chosen[:, 0], s)
        return (cache, hidden), (chosen[:, 0], best[:, 0] - best[:, 1])

    _, (chosen, lead) = jax.lax.scan(step, (cache, hidden), jnp.arange(NEW_TOKENS))
    return chosen.T, lead.T


def compare_logits(model, params, tokenizer, peer) -> dict:
    rows = []
    for n, text in enumerate(TEXTS):
        ids = np.array(tokenizer.encode(text))
        assert np.array_equal(ids, peer[f"text_{n}"]), text
        ours = np.asarray(model.logits(params, model.hidden(params, ids[None]))[0])
        theirs = peer[f"logits_{n}"]
        rows.append(
            {
                "tokens": len(ids),
                "largest_difference": float(np.abs(ours - theirs).max()),
                "ours_from_float64": float(np.abs(ours - peer[f"logits64_{n}"]).max()),
                "theirs_from_float64": float(np.abs(theirs - peer[f"logits64_{n}"]).max()),
                "largest_logit": float(np.abs(theirs).max()),
                "same_best_token": bool((ours.argmax(-1) == theirs.argmax(-1)).all()),
            }
        )
    return {"rows": rows, "largest_difference": max(row["largest_difference"] for row in rows)}


def compare_answers(model, params, tokenizer, peer) -> dict:
    asked = [tokenizer.prompt(question) for question in QUESTIONS]
    for n, ids in enumerate(asked):
        assert ids == peer[f"prompt_{n}"].tolist(), QUESTIONS[n]
    lengths = np.array([len(ids) for ids in asked])
    tokens = np.zeros((len(asked), lengths.max()), np.int32)
    for row, ids in zip(tokens, asked, strict=True):
        row[: len(ids)] = ids
    chosen, lead = map(np.asarray, answer(model, params, tokens, lengths))
    rows = []
    ends = set(tokenizer.eos_ids)
    for n, (ours, theirs) in enumerate(zip(chosen.tolist(), peer["answers"].tolist(), strict=True)):
        end = next((i for i, token in enumerate(ours) if token in ends), NEW_TOKENS)
        rows.append(
            {
                "question": QUESTIONS[n],
                "same_tokens": next(
                    (i for i in range(NEW_TOKENS) if ours[i] != theirs[i]), NEW_TOKENS
                ),
                "answer_tokens": end,
                "smallest_lead": float(lead[n].min()),
                "answer": tokenizer.decode(ours[:end]),
            }
        )
    same = sum(row["same_tokens"] == NEW_TOKENS for row in rows)
    return {"the_same": same, "of": len(rows), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=pathlib.Path, required=True)
    parser.add_argument("--peer", type=pathlib.Path, required=True)
    args = parser.parse_args()
    model, params, tokenizer = gguf.load(args.gguf)
    with np.load(args.peer) as peer:
        results = {
            "peer": str(peer["version"]),
            "jax": jax.__version__,
            "new_tokens": NEW_TOKENS,
            "logits": compare_logits(model, params, tokenizer, peer),
            "greedy": compare_answers(model, params, tokenizer, peer),
        }
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"logits: largest difference {results['logits']['largest_difference']:.2e}")
    for row in results["greedy"]["rows"]:
        print(f"{row['same_tokens']:3} of {NEW_TOKENS} tokens the same: {row['question']}")


if __name__ == "__main__":
    main()
