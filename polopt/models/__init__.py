"""Models: one configurable decoder behind static handles."""

from polopt.models.config import DecoderConfig
from polopt.models.language_model import (
    Cache,
    LanguageModel,
    Params,
    Prompt,
    ValueModel,
    grow_cache,
)

__all__ = [
    "Cache",
    "DecoderConfig",
    "LanguageModel",
    "Params",
    "Prompt",
    "ValueModel",
    "grow_cache",
]
