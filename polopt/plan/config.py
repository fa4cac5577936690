"""The flat configuration of a plan: that of a run, as far as it decides sizes, and a slice."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from polopt.errors import UsageError
from polopt.train.config import TrainConfig
from polopt.train.fields import RANGES, check

_RANGES = RANGES | {
    "slice": ("text that is not empty", lambda v: v.strip() != ""),
    "picture": ("a file that ends in .png", lambda v: v.endswith(".png")),
    "prompt_length": ("at least 1", lambda v: v >= 1),
    "search": ("at least 0", lambda v: v >= 0),
}


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Say whether a training step fits a TPU slice, and what it takes; no TPU needed.

    Raises `polopt.errors.UsageError` for a value of the wrong type or out of range.
    """

    model: str = "llama3-8b"
    """The model's shape: llama3-8b, llama3-70b, qwen2.5-0.5b, smollm2-135m, base, or a folder with
    a config.json; no weights are read."""
    slice: str = "v5e-16"
    """Where it would run: v4-8, v5e-16, v5p-64, v6e-8 and so on; a topology, as v5e:4x4; or cpu."""
    algorithm: str = "grpo"
    """Key of a method (see: polopt methods), or your own as file.py:name or module:name."""
    set: tuple[str, ...] = ()
    """Hyper-parameters of the method to replace, as link.name=number: clip.low=0.1."""
    teacher: str | None = None
    """The shape of the teacher, for methods that distil (None: the model's own)."""

    prompts: int | None = None
    """Prompts per rollout (None: so many that a rollout has 256 completions)."""
    group_size: int | None = None
    """Completions per prompt (None: the method's, scaled to the task)."""
    epochs: int | None = None
    """Passes over each rollout (None: the method's, scaled down)."""
    minibatches: int | None = None
    """Optimiser steps per pass (None: the method's, scaled down)."""
    micro_batch: int | None = None
    """Rows per device and forward and backward pass (None: all)."""
    prompt_length: int = 512
    """Tokens of a prompt."""
    max_new_tokens: int = 512
    """Tokens of a completion; all are taken to be as long."""
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """In which models compute; weights, log-probabilities and losses are float32."""
    lanes: int | None = None
    """Rows that are sampled side by side (None: all)."""
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

    parallel: Literal["mesh", "pmap"] = "mesh"
    """How to spread over devices: mesh, a part of the model on each; pmap, a copy."""
    mesh: tuple[str, ...] = ()
    """Sizes of the mesh, whose product is the devices: data=2 fsdp=4 (also tensor=, sequence=; -1
    for what is left; none given: fsdp=-1)."""

    compile: bool = True
    """Ask the compiler; on unless --no-compile, which leaves what is counted from shapes."""
    update_only: bool = False
    """Of the programs, compile the update alone: it needs most."""
    effort: Literal["quick", "full"] = "quick"
    """Of the TPU's compiler: full is what a run has, and takes it several times as long; quick
    leaves out its search for speed, and temporaries come out a little different."""
    search: int = 4
    """Programs to compile at most in search of the largest micro-batch, and in search of settings
    that fit where these do not (0: do not search)."""
    json: bool = False
    """Print JSON."""
    picture: str | None = None
    """Draw the memory of a device into this .png file as well."""

    def __post_init__(self) -> None:
        """Check every field, so that a configuration that exists is valid."""
        check(self, _RANGES)
        if self.parallel == "pmap" and self.mesh:
            raise UsageError("mesh: parallel=pmap has none: leave one of them out")
        self.training()

    def training(self) -> TrainConfig:
        """The configuration of such a run."""
        shared = {field.name for field in dataclasses.fields(TrainConfig)}
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name in shared
        }
        return TrainConfig(**values)

    def flags(self) -> str:
        """What `polopt train` is told of where and how rows are computed."""
        said = [f"--mesh {' '.join(self.mesh or ('fsdp=-1',))}"]
        said = ["--parallel pmap"] if self.parallel == "pmap" else said
        said += [f"--micro-batch {self.micro_batch}"] if self.micro_batch else []
        said += ["--remat"] if self.remat else []
        said += [f"--lora-rank {self.lora_rank}"] if self.lora_rank else []
        said += [f"--quantise {self.quantise}"] if self.quantise else []
        said += [f"--lanes {self.lanes}"] if self.lanes else []
        return " ".join(said)
