"""The flat configuration of supervised fine-tuning, and what any run was configured by."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polopt.errors import UsageError
from polopt.train.config import TrainConfig, from_dict, read_object, read_text
from polopt.train.fields import check

COMMAND = "sft"


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Fine-tune a model on conversations or a task's solutions; keep a record.

    Raises `polopt.errors.UsageError` for a value of the wrong type or out of range.
    """

    command: str = dataclasses.field(default=COMMAND, init=False)

    model: str = "base"
    """The model to start from: base (ships with polopt), smollm2-135m, a .gguf file, or the folder
    of a model or of a run."""
    data: str | None = None
    """Rows to learn from: a JSONL file of {"messages": [...]}, {"prompt", "completion"} or
    {"prompt", "answer"} objects."""
    task: str | None = None
    """Learn a task's own solutions instead: a family of reasoning-gym."""
    task_args: tuple[str, ...] = ()
    """Settings of the task, as name=value: max_terms=4."""
    solution: Literal["worked", "answer"] | None = None
    """What of a task is learned: answers alone, or the way to them (None: worked if it is known)"""
    problems: int | None = None
    """Rows made of a task (None: 500) or of a file of answers (None: all that are not held out)."""
    held_out: int = 256
    """Held-out problems of the task: no row shows one, so polopt eval may ask for as many."""
    system: str | None = None
    """System message put before each prompt, for models with a chat template (None: the form of an
    answer, where answers are learned; "": no message)."""

    epochs: int = 2
    """Passes over the rows."""
    batch: int = 16
    """Rows per optimiser step."""
    micro_batch: int | None = None
    """Most rows per forward and backward pass; saves memory, changes nothing else (None: all)."""
    micro_tokens: int | None = None
    """Most tokens per forward and backward pass, padding included (None: all)."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """In which the model computes; weights, log-probabilities and losses are float32."""
    attention: Literal["auto", "xla", "splash"] = "auto"
    """Which code computes attention: splash is a kernel for TPUs (auto: there splash, else xla)."""
    remat: bool = False
    """Recompute each layer in the backward pass: less memory for a third more time."""

    lora_rank: int = 0
    """Train adapters of this rank over a model that stays (0: train the model itself)."""
    lora_alpha: float = 32.0
    """Scale of the adapters: what they add to a matrix is multiplied by alpha / rank."""
    lora_targets: tuple[str, ...] = ("(attention|mlp)/.*",)
    """Which linear maps are adapted, as regular expressions: attention/(q|v), layers/0/mlp/.*."""
    quantise: Literal["int8", "int4", "nf4"] | None = None
    """Keep the model under the adapters in eight or four bits a number."""

    learning_rate: float = 1e-4
    """Peak learning rate; adapters want about ten times that of full training."""
    warmup: int = 5
    """Optimiser steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """What the learning rate does after warm-up; linear and cosine end at 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Global norm to which gradients are clipped."""

    max_new_tokens: int | None = None
    """Longest completion when the run is evaluated (None: that of the longest row)."""
    checkpoint_every: int = 100
    """Steps between checkpoints (0: only at the end)."""
    seed: int = 0
    """Seed of problems, of the order of rows and of adapters."""

    run: str | None = None
    """Folder of the run (None: runs/sft-<task or file>-<seed>)."""
    resume: bool = False
    """Continue the run in the folder; starts it if there is none yet."""
    quiet: bool = False
    """Print one closing line and nothing else."""
    plot: bool = True
    """Draw plots/run.png in the run's folder; on unless --no-plot."""

    def __post_init__(self) -> None:
        """Check every field."""
        check(self)
        if self.data is not None and self.task is not None:
            raise UsageError("task and data are two sources of rows: give one of them")

    @property
    def folder(self) -> Path:
        """Folder of the run: `run`, or one named after task or file and seed."""
        if self.run is not None:
            return Path(self.run)
        source = self.task if self.data is None else Path(self.data).stem
        return Path("runs") / f"{COMMAND}-{source}-{self.seed}"


def find_run(name: str) -> TrainConfig | SftConfig | None:
    """The configuration of the run in the folder `name`; None if it is no folder of a run."""
    if not (Path(name) / "config.json").is_file():
        return None
    # A model's folder has a config.json, too, and nothing in it names another model.
    return read_run(name) if "model" in read_object(*read_text(name)) else None


def read_run(folder: str | Path) -> TrainConfig | SftConfig:
    """The configuration of a run, whichever command made it."""
    text, where = read_text(folder)
    values = read_object(text, where)
    if values.get("command") != COMMAND:
        return from_dict(values, where)
    del values["command"]
    return from_dict(values, where, SftConfig)
