"""TRL's half: its GRPOTrainer's own methods, on the CPU with two threads."""

import pathlib

import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from peer_tokenizer import make_tokenizer, text_of
from safetensors.torch import save_file
from serving import CORES, Clock, Peak, serve
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList
from workload import CLIP, EOS, LEARNING_RATE, Case, lengths_of, prompts_of, reward_of


class FixedLengths(LogitsProcessor):
    """Row n ends at its length, and not before."""

    def __init__(self, prompt: int, lengths: np.ndarray):
        self.prompt, self.lengths = prompt, torch.tensor(lengths)

    def __call__(self, input_ids, scores):
        ending = self.lengths == input_ids.shape[1] - self.prompt + 1
        scores[:, EOS] = -torch.inf
        scores[ending] = -torch.inf
        scores[ending, EOS] = 0.0
        return scores


def trainer_of(work: pathlib.Path, case: Case) -> trl.GRPOTrainer:
    """On the exported weights; rows of a batch are one generation and one optimiser step."""
    settings = trl.GRPOConfig(
        output_dir=str(work / "trl"),
        per_device_train_batch_size=case.rows,
        num_generations=case.group,
        max_completion_length=case.completion,
        loss_type="grpo",
        epsilon=CLIP,
        beta=0.0,
        temperature=1.0,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        max_steps=1000,
    )
    tokenizer = make_tokenizer(case.vocab)
    made = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32),
        reward_funcs=lambda completion_ids, **_: [reward_of(np.array(c)) for c in completion_ids],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": [text_of(p) for p in prompts_of(case)]}),
        processing_class=tokenizer,
    )
    made.create_optimizer_and_scheduler(1000)
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    return made


def make(work: pathlib.Path, asked: dict) -> dict:
    torch.set_num_threads(CORES)
    torch.manual_seed(0)
    case = Case(**asked)
    trainer = trainer_of(work, case)
    model, clock = trainer.model, Clock()
    generate, score = model.generate, trainer._generate_and_score_completions
    ends = LogitsProcessorList([FixedLengths(case.prompt, lengths_of(case))])

    def timed_generate(*args, **kwargs):
        made = generate(*args, logits_processor=ends, **kwargs)
        clock.lap("generate")
        return made

    def timed_score(inputs):
        made = score(inputs)
        clock.lap("score")
        return made

    model.generate, trainer._generate_and_score_completions = timed_generate, timed_score
    prompts = [{"prompt": text_of(p)} for p in prompts_of(case).repeat(case.group, axis=0)]

    def gradient() -> dict:
        found = np.load(work / "batch.npz")
        tokens, length = torch.tensor(found["completions"], dtype=torch.long), found["length"]
        ids = torch.tensor(prompts_of(case).repeat(case.group, axis=0), dtype=torch.long)
        mask = torch.arange(case.completion)[None] < torch.tensor(length)[:, None]
        inputs = {
            "prompt_ids": ids,
            "prompt_mask": torch.ones_like(ids),
            "completion_ids": tokens,
            "completion_mask": mask.long(),
            "advantages": torch.tensor(found["credit"]),
            "num_items_in_batch": mask.sum(),
        }
        loss = trainer.compute_loss(model, inputs)
        loss.backward()
        names = dict(model.named_parameters())
        grads = {name: p.grad.contiguous() for name, p in names.items() if p.grad is not None}
        save_file(grads, work / "gradient_trl.safetensors")
        model.zero_grad()
        return {"loss": loss.item()}

    def step() -> dict:
        nonlocal clock
        with Peak() as peak:
            clock = Clock()
            trainer.training_step(model, prompts, None)
            trainer.optimizer.step()
            model.zero_grad()
            clock.lap("update")
        return {
            "wall": clock.wall,
            "cpu": clock.cpu,
            "peak": peak.block,
            "process_peak": peak.process,
        }

    def versions() -> dict:
        return {m.__name__: m.__version__ for m in (torch, transformers, trl)}

    return {"gradient": gradient, "step": step, "versions": versions}


if __name__ == "__main__":
    serve(make)
