"""Jobs of small models, whose shapes are read from a folder."""

from __future__ import annotations

import json

from polopt.models import DecoderConfig
from polopt.plan.config import PlanConfig
from polopt.plan.job import make_job

SHAPE = DecoderConfig(
    vocab_size=512,
    hidden_size=64,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_size=128,
    max_length=64,
)


def configured(folder, **changes):
    """A plan's configuration for the small model."""
    (folder / "config.json").write_text(json.dumps(SHAPE.to_dict()))
    settings = {
        "model": str(folder),
        "slice": "cpu-8",
        "prompts": 8,
        "group_size": 4,
        "minibatches": 1,
        "epochs": 1,
        "prompt_length": 16,
        "max_new_tokens": 32,
    }
    return PlanConfig(**{**settings, **changes})


def job_of(method, folder, **changes):
    return make_job(configured(folder, **changes), method)
