"""Flat configurations: the command line's flags, and the config.json of a run.

Docstrings of fields are the text of ``--help``. Constructing one checks it.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from polopt.errors import PoloptError, UsageError, did_you_mean
from polopt.train.fields import SAMPLE_RANGES, assignments, check, hints

Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a language model with a policy-optimisation method and record the run.

    Raises `polopt.errors.UsageError` for a value of the wrong type or out of range.
    """

    algorithm: str = "grpo"
    """Key of a method (see: polopt methods), or your own as file.py:name or module:name."""
    set: tuple[str, ...] = ()
    """Hyper-parameters of the method to replace, as link.name=number: clip.low=0.1."""

    task: str = "chain_sum"
    """Where prompts and verified rewards come from: a family of reasoning-gym, or calculator."""
    task_args: tuple[str, ...] = ()
    """Settings of the task, as name=value: max_terms=4."""
    data: str | None = None
    """Your own problems instead of a task: a JSONL file."""
    reward: str | None = None
    """Your own reward function, as file.py:name or module:name."""
    model: str = "base"
    """The model to start from: base (ships with polopt), smollm2-135m, a .gguf file, or the folder
    of a model (as Hugging Face or polopt writes it) or of a run."""
    teacher: str | None = None
    """The model to learn from, for methods that distil: base or the folder of a model or a run."""
    problems: int | None = None
    """Train on so many different problems, again and again (None: on all there are)."""
    system: str | None = None
    """System message put before each problem, for models with a chat template (None: the form of
    an answer, as the task has it; "": no message)."""

    steps: int = 40
    """Training steps; each is a rollout followed by its update."""
    prompts: int | None = None
    """Prompts per rollout (None: so many that a rollout has 256 completions)."""
    group_size: int | None = None
    """Completions per prompt (None: the method's, scaled to the task)."""
    epochs: int | None = None
    """Passes over each rollout (None: the method's, scaled down)."""
    minibatches: int | None = None
    """Optimiser steps per pass (None: the method's, scaled down)."""
    micro_batch: int | None = None
    """Most rows per forward and backward pass; saves memory, changes nothing else (None: all)."""
    micro_tokens: int | None = None
    """Most tokens per forward and backward pass of a device, as they are computed: shared prompts
    once, padding included; long batches take more passes, short ones fewer (None: all)."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """In which models compute; weights, log-probabilities and losses are float32."""
    attention: Literal["auto", "xla", "splash"] = "auto"
    """Which code computes attention: splash is a kernel for TPUs (auto: there splash, else xla)."""
    lanes: int | None = None
    """Rows that are sampled side by side; a finished one makes room for the next (None: all)."""
    pack: Literal["auto", "always", "never"] = "auto"
    """Compute completions of a prompt side by side, without padding; auto: large models only."""
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
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after warm-up; linear and cosine end at 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Global norm to which gradients are clipped."""

    max_new_tokens: int = 32
    """Longest completion, in tokens; longer ones are cut and counted as truncated."""
    temperature: float = 1.0
    """Sampling temperature of the rollouts."""
    top_k: int | None = None
    """Sample among the k likeliest tokens only."""
    top_p: float | None = None
    """Sample within the smallest set of tokens that has this much probability."""
    min_p: float | None = None
    """Drop tokens below this share of the likeliest token's probability."""

    server: str | None = None
    """Sample from a vLLM or SGLang server at this address instead of here: http://host:port."""
    server_model: str | None = None
    """Name under which it serves the policy (None: the only one that it serves)."""
    server_reports: Literal["raw", "tempered", "processed"] | None = None
    """What its log-probabilities are of (None: what such servers report unless told otherwise)."""
    server_concurrency: int = 64
    """Requests under way at once."""
    server_push: str | None = None
    """Folder that the server sees: new weights are written there at every step and loaded by it
    (None: it keeps those that it has)."""
    server_corrected: bool = True
    """Weigh tokens by what the trainer says of them over what the server does (truncated_is);
    on unless --no-server-corrected."""

    eval_every: int = 10
    """Steps between held-out evaluations (0: only before and after)."""
    eval_problems: int = 256
    """Held-out problems per evaluation (0: none)."""
    checkpoint_every: int = 20
    """Steps between checkpoints (0: only at the end)."""

    devices: int | None = None
    """Devices to use, of each process (None: all that it has)."""
    parallel: Literal["auto", "jit", "pmap", "mesh"] = "auto"
    """How to spread over devices: jit on one; pmap, a copy of the model on each; mesh, a part of it
    on each, for models that do not fit one. auto: jit on one, pmap on several, mesh with --mesh."""
    mesh: tuple[str, ...] = ()
    """Sizes of the mesh, whose product is the devices: data=2 fsdp=4 (also tensor=, sequence=; -1
    for what is left). data deals rows, fsdp rows and weights, tensor heads and MLPs, sequence
    positions (none given: fsdp=-1)."""
    sample_devices: int | None = None
    """Devices that only sample: they draw a rollout while the others learn from the one before
    (None: all do both in turn)."""
    sample_mesh: tuple[str, ...] = ()
    """Sizes of another mesh for sampling: what is cut along fsdp is gathered for every token, what
    is cut along tensor is not (none given: as for training, or data=-1 on devices of its own)."""
    seed: int = 0
    """Seed of every draw: problems, samples, minibatches."""

    run: str | None = None
    """Folder of the run (None: runs/<algorithm>-<task>-<seed>)."""
    resume: bool = False
    """Continue the run in the folder; starts it if there is none yet."""
    quiet: bool = False
    """Print one closing line and nothing else."""
    plot: bool = True
    """Draw plots/run.png in the run's folder; on unless --no-plot."""

    def __post_init__(self) -> None:
        """Check every field, so that a configuration that exists is valid."""
        check(self)
        for path, value in assignments(self.set, "set").items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UsageError(f"set: {path} takes a number, not {value!r}")
        for name in ("server_model", "server_reports", "server_push"):
            if getattr(self, name) is not None and self.server is None:
                raise UsageError(f"{name} is of a server: give its address too (--server)")

    @property
    def folder(self) -> Path:
        """Folder of the run: `run`, or one named after algorithm, task and seed."""
        if self.run is not None:
            return Path(self.run)
        algorithm = self.algorithm.rpartition(":")[2]
        task = self.task if self.data is None else Path(self.data).stem
        return Path("runs") / f"{algorithm}-{task}-{self.seed}"

    @property
    def hyper(self) -> dict[str, int | float]:
        """`set` as a dictionary from dotted name to number."""
        return assignments(self.set, "set")


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Problems of a task, and how a model is asked to complete them.

    Raises `polopt.errors.UsageError` for a value of the wrong type or out of range.
    """

    model: str = "base"
    """base (ships with polopt) or the folder of a run."""
    task: str | None = None
    """Family of problems (None: the run's own, or chain_sum)."""
    task_args: tuple[str, ...] = ()
    """Settings of the task, as name=value."""
    data: str | None = None
    """Your own problems instead of a task: a JSONL file."""
    reward: str | None = None
    """Your own reward function, as file.py:name or module:name."""
    system: str | None = None
    """System message put before each problem, for models with a chat template (None: the run's
    own, or the form of an answer, as the task has it; "": no message)."""
    problems: int = 256
    """Held-out problems."""
    samples: int = 1
    """Completions per problem; pass@k is estimated for every power of two up to it."""
    max_new_tokens: int | None = None
    """Longest completion, in tokens (None: the run's own, or 32)."""
    temperature: float = 1.0
    """Sampling temperature; 0 takes the likeliest token."""
    top_k: int | None = None
    """Sample among the k likeliest tokens only."""
    top_p: float | None = None
    """Sample within the smallest set of tokens that has this much probability."""
    min_p: float | None = None
    """Drop tokens below this share of the likeliest token's probability."""
    seed: int = 0
    """Seed of problems and samples."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, SAMPLE_RANGES)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Train a small model from nothing, by supervision on a task's worked solutions.

    All of them have one tokenizer, so that one can be the teacher of another.

    Raises `polopt.errors.UsageError` for a value of the wrong type or out of range.
    """

    out: str = "base"
    """Folder for the model; it must not exist yet."""
    task: str = "chain_sum"
    """Family of problems; its worked solutions must be known (chain_sum)."""
    task_args: tuple[str, ...] = ()
    """Settings of the task, as name=value."""
    layers: int = 4
    """Layers of the decoder."""
    width: int = 128
    """Its hidden size, a multiple of 32, the size of a head."""
    steps: int = 2400
    """Optimiser steps."""
    batch: int = 64
    """Rows per step; a multiple of 4."""
    learning_rate: float = 1e-2
    """Peak learning rate."""
    seed: int = 0
    """Seed of initialisation and data."""

    def __post_init__(self) -> None:
        """Check every field."""
        check(self)


# Change where a run is shown or how its arithmetic is split, but not what it computes.
_FREE_ON_RESUME = frozenset(
    [
        *("run", "resume", "quiet", "plot", "checkpoint_every"),
        *("devices", "parallel", "mesh", "sample_mesh", "attention"),
        *("micro_batch", "micro_tokens", "pack", "remat", "lanes"),
        *("server_concurrency", "server_push"),
    ]
)


def to_json(config: Any) -> str:
    """Write every field; `from_json` gives back an equal configuration."""
    return json.dumps(dataclasses.asdict(config), indent=2, allow_nan=False) + "\n"


def from_json(text: str, source: str = "config.json") -> TrainConfig:
    """Read a configuration; keys that are no fields are refused."""
    return from_dict(read_object(text, source), source)


def read_object(text: str, source: str) -> dict[str, Any]:
    """Read one JSON object."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise PoloptError(f"{source} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise PoloptError(f"{source} must hold one JSON object, not a {type(values).__name__}")
    return values


def from_dict(
    values: Mapping[str, Any], source: str = "config", kind: Callable[..., Config] = TrainConfig
) -> Config:
    """Build a configuration from a mapping; lists become tuples, absent keys their defaults."""
    known = hints(kind)
    for key in values:
        if key not in known:
            raise UsageError(f"{source}: no setting {key!r}{did_you_mean(key, known)}")
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    return kind(**fields)


def read_config(path: str | Path) -> TrainConfig:
    """Read a config.json, or that of a run's folder."""
    return from_json(*read_text(path))


def read_text(path: str | Path) -> tuple[str, str]:
    """The text of a config.json, or that of a run's folder, and where it is."""
    file = Path(path)
    file = file / "config.json" if file.is_dir() else file
    try:
        return file.read_text(encoding="utf-8"), str(file)
    except OSError as error:
        raise PoloptError(f"cannot read the configuration {file}: {error.strerror}") from error


def resume_conflicts(recorded: Any, asked: Any) -> list[str]:
    """List the fields in which `asked` would not continue the run that `recorded` began.

    Settings of display and of how arithmetic is split may change; so may `steps` upwards,
    where the learning rate does not depend on it, and the address of a server. Rollouts that are
    drawn ahead are not drawn across checkpoints: then `checkpoint_every` may not change.
    """
    if type(recorded) is not type(asked):
        return ["it is a run of another command"]
    longer = (
        isinstance(asked, TrainConfig)
        and asked.steps > recorded.steps
        and asked.schedule == "constant"
    )
    moved = isinstance(asked, TrainConfig) and asked.server and recorded.server
    ahead = isinstance(asked, TrainConfig) and asked.sample_devices
    free = _FREE_ON_RESUME | ({"steps"} if longer else set()) | ({"server"} if moved else set())
    free -= {"checkpoint_every"} if ahead else set()
    return [
        f"{name} is {getattr(recorded, name)!r} in the run and {getattr(asked, name)!r} now"
        for name in hints(type(asked))
        if name not in free and getattr(recorded, name) != getattr(asked, name)
    ]
