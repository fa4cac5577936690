"""How good a base model is: accuracy at temperature 1 and greedy, by the way it answers.

python experiments/base_model/evaluate.py [folder] [--samples 4]
"""

import argparse
import functools

import jax
import numpy as np

from polopt.models import base
from polopt.models.tokenizer import ANSWER_OPEN
from polopt.rollout.draw import Decoding
from polopt.rollout.sampler import generate
from polopt.tasks import load_task
from polopt.train.pretrain import HELD_OUT

PROMPT_ROOM, NEW_TOKENS = 16, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default=base.EMBEDDED)
    parser.add_argument("--samples", type=int, default=4)
    options = parser.parse_args()
    model, params, tokenizer = base.load(options.folder)
    task = load_task(held_out=HELD_OUT)
    for name, decoding, samples in (
        ("temperature 1", Decoding(), options.samples),
        ("greedy", Decoding(greedy=True), 1),
    ):
        generated = sample(model, params, tokenizer, task, decoding, samples)
        print(f"{name:14s}", report(generated, tokenizer, task, samples))


def sample(model, params, tokenizer, task, decoding, samples):
    prompts = [tokenizer.prompt(example.prompt) for example in task.held_out]
    tokens = np.zeros((len(prompts), PROMPT_ROOM), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    complete = functools.partial(
        generate,
        model,
        params,
        key=jax.random.key(0),
        group_size=samples,
        max_new_tokens=NEW_TOKENS,
        decoding=decoding,
        eos_ids=tokenizer.eos_ids,
    )
    ids = np.arange(len(prompts) * samples, dtype=np.int32)
    return jax.device_get(complete(tokens, lengths, ids))


def report(generated, tokenizer, task, samples) -> str:
    direct = np.asarray(generated.tokens[:, 0] == tokenizer.token_id(ANSWER_OPEN))
    right = np.zeros(len(direct), bool)
    for n, (row, length) in enumerate(zip(generated.tokens, generated.length, strict=True)):
        example = task.held_out[n // samples]
        right[n] = task.reward(tokenizer.decode(row[:length]), example)["score"] == 1
    share = {
        "accuracy": right.mean(),
        "worked": (~direct).mean(),
        "accuracy when worked": right[~direct].mean() if (~direct).any() else np.nan,
        "accuracy when direct": right[direct].mean() if direct.any() else np.nan,
    }
    shown = [f"{key} {100 * value:5.1f} %" for key, value in share.items()]
    lengths = f"tokens mean {generated.length.mean():.1f} max {generated.length.max()}"
    return "  ".join([*shown, lengths])


if __name__ == "__main__":
    main()
