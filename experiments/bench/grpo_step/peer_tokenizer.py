"""A tokenizer of a peer: token i is the word `ti`, so that prompts of ids can go in as text.

Special tokens are found inside of words, too, hence their other names.
"""

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from workload import EOS, PAD


def make_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Without beginnings of texts."""
    special = {PAD: "<pad>", EOS: "<eos>"}
    words = {special.get(i, f"t{i}"): i for i in range(vocab)}
    made = Tokenizer(models.WordLevel(words, unk_token=special[PAD]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=special[PAD], eos_token=special[EOS], padding_side="left"
    )


def text_of(ids: np.ndarray) -> str:
    """What the tokenizer makes these ids of."""
    return " ".join(f"t{i}" for i in ids)
