"""New weights for a server, through a folder that both machines see."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

from polopt.errors import PoloptError
from polopt.models import LanguageModel, huggingface
from polopt.models.load import is_huggingface
from polopt.models.lora import LoraModel
from polopt.models.tokenizer import Tokenizer
from polopt.rollout.dialects import SGLANG
from polopt.rollout.server import Found
from polopt.rollout.wire import ServerError


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderPush:
    """The `push` of a `ServerSampler`: a Hugging Face folder is written anew and loaded from.

    Adapters are merged. vLLM must have been started on the folder, with VLLM_SERVER_DEV_MODE=1.

    Args:
      found: the server, from `probe`.
      folder: a new one, or one that holds a model, which is replaced.
      model: handle of what is pushed.
      tokenizer: written beside the weights.
      dtype: of the files.

    Raises:
      PoloptError: the folder holds something that is not a model.
    """

    found: Found
    folder: Path
    model: LanguageModel
    tokenizer: Tokenizer
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.folder.exists() and not is_huggingface(self.folder):
            raise PoloptError(
                f"{self.folder} is no Hugging Face folder, and weights would replace it: name a "
                "new one, or one that polopt export wrote"
            )

    def __call__(self, params: Any, version: int) -> None:
        """Write the weights, and return when the server samples from them.

        Raises:
          PoloptError: they cannot be written.
          ServerError: the server did not load them.
        """
        model = self.model
        if isinstance(model, LoraModel):
            model, params = model.merge(params)
        fresh = self.folder.with_name(f"{self.folder.name}.{version}")
        shutil.rmtree(fresh, ignore_errors=True)  # of a run that was killed
        huggingface.save(fresh, model, params, self.tokenizer, dtype=self.dtype)
        _replace(self.folder, fresh)
        if self.found.dialect is SGLANG:
            self._load_sglang(version)
        else:
            self._load_vllm()

    def _load_sglang(self, version: int) -> None:
        # Cached prefixes go with the old weights.
        path = "/update_weights_from_disk"
        body = {"model_path": str(self.folder.absolute()), "weight_version": str(version)}
        told = self.found.server.post(path, body)
        if not (isinstance(told, dict) and told.get("success") is True):
            raise ServerError(f"{self.found.server.url}{path}: the weights were not loaded: {told}")

    def _load_vllm(self) -> None:
        self.found.server.post("/collective_rpc", {"method": "reload_weights"})
        self.found.server.post("/reset_prefix_cache")


def _replace(folder: Path, fresh: Path) -> None:
    """Put `fresh` in the place of `folder`; at every moment one of them is whole."""
    old = folder.with_name(folder.name + ".old")
    try:
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(fresh, folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise PoloptError(f"cannot write {folder}: {error.strerror or error}") from error
