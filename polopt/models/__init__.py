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
from polopt.models.mixed import MixedModel
from polopt.models.partition import PartitionModel

__all__ = [
    "Cache",
    "DecoderConfig",
    "LanguageModel",
    "MixedModel",
    "Params",
    "PartitionModel",
    "Prompt",
    "ValueModel",
    "grow_cache",
]
